"""`scalear predict` with a tokenizer: cached latents, one set of shards per rank."""

from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from scalear.class_paths import class_path
from scalear.data.batch import Batch
from scalear.data.index import INDEX_NAME, LatentInfo, Shard
from scalear.data.latents import LatentShardWriter, stray_shards, write_latent_index
from scalear.training.tokenizer.checks import tokenizer_of


class LatentWriter(Callback):
    """Writes what `TokenizerModule.predict_step` gives into latent shards, and their index last.

    Args:
        output_dir: The new dataset; by default `latents` in the run's folder.
        block_size: Samples in a member of a shard.
        blocks_per_shard: Members in a shard.
    """

    def __init__(self, output_dir: str | None = None, block_size: int = 256, blocks_per_shard: int = 32) -> None:
        if min(block_size, blocks_per_shard) < 1:
            raise ValueError(
                f"block_size and blocks_per_shard must be at least 1, got {block_size} and {blocks_per_shard}"
            )
        self.output_dir = output_dir
        self.block_size = block_size
        self.blocks_per_shard = blocks_per_shard
        self._writer: LatentShardWriter | None = None
        self._split: str | None = None
        self._shards: dict[str, list[Shard]] = {}
        self._moments_shape: tuple[int, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        tokenizer_of(pl_module, self)
        if stage != TrainerFn.PREDICTING or trainer.fast_dev_run:
            return
        self._refuse_finished(trainer)
        stray_shards(self._folder(trainer))  # may refuse

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shards = {}
        if trainer.fast_dev_run:
            return  # nothing is written
        self._refuse_finished(trainer)  # another process may have been at it until this one claimed the folder
        if trainer.is_global_zero and (stray := stray_shards(self._folder(trainer))):
            for path in stray:
                path.unlink()
            rank_zero_info(f"removed {len(stray)} shards that an unfinished run left in {self._folder(trainer)}")
        trainer.strategy.barrier("stray shards removed")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.fast_dev_run:
            return
        split = trainer.datamodule.predict_splits[dataloader_idx]
        if split != self._split:
            self._close()
            self._split = split
            self._writer = LatentShardWriter(
                self._folder(trainer),
                split,
                trainer.global_rank,
                pl_module.tokenizer.moments_dtype,
                self.block_size,
                self.blocks_per_shard,
            )
        self._moments_shape = tuple(outputs["moments"].shape[1:])
        self._writer.add(outputs["moments"], outputs["flipped"], batch.label, batch.keys)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        self._close()
        shards_of_ranks = [self._shards]
        if trainer.world_size > 1:
            shards_of_ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(shards_of_ranks, self._shards)
        if not trainer.is_global_zero:
            return
        tokenizer = pl_module.tokenizer
        latents = LatentInfo(
            tokenizer=class_path(type(tokenizer)),
            fingerprint=tokenizer.fingerprint(),
            moments_shape=self._moments_shape,
            dtype=str(tokenizer.moments_dtype).removeprefix("torch."),
            block_size=self.block_size,
        )
        folder, data = self._folder(trainer), trainer.datamodule
        images = replace(data.index, image_size=data.image_size)  # that of a crop, if that was encoded
        index = write_latent_index(folder, images, latents, shards_of_ranks)
        counts = ", ".join(f"{index.num_samples(split):,} {split}" for split in index.splits)
        rank_zero_info(f"latents of {counts} images written to {folder}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def _refuse_finished(self, trainer: Trainer) -> None:
        if (self._folder(trainer) / INDEX_NAME).exists():
            raise ValueError(
                f"{self._folder(trainer)} holds a finished dataset; delete it, or choose another folder for the latents"
            )

    def _close(self) -> None:
        if self._writer is not None:
            self._shards[self._split] = self._writer.close()
        self._writer, self._split = None, None

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.output_dir or Path(trainer.default_root_dir, "latents"))
