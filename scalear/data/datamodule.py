"""Tar shards as Lightning's data: an exactly resumable training stream, complete evaluation."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from scalear.data.accumulation import accumulation_scheduler
from scalear.data.dataset import Augmentation, ShardDataset, ShardLoader
from scalear.data.index import INDEX_NAME, DatasetIndex
from scalear.data.plan import EvalBatches, TrainBatches, TrainPlan
from scalear.data.reader import ShardReader
from scalear.data.resume import StreamPosition


class ShardDataModule(LightningDataModule):
    """Images or cached latents from a dataset that `scalear data pack` or `scalear predict` wrote.

    Training order is a function of (seed, epoch), whatever the number of ranks and workers; see `scalear.data.plan`.
    Used without a Trainer, `train_dataloader()` goes from `position` to the end of that epoch; set `position` to the
    last batch's `stream_end` and ask again.

    Args:
        data_dir: Folder with `index.json`.
        latents_dir: Cached latents of the images in `data_dir`, which are read instead of them. Default: `data_dir` is
            read, be it images or latents.
        batch_size: Training samples per rank and step (before gradient accumulation).
        global_batch: Training samples of an optimizer step. Devices x nodes x `batch_size` x
            `trainer.accumulate_grad_batches` must give it, and `trainer.max_epochs` means as many optimizer steps as so
            many epochs have global batches (rounded). None: nothing is checked, and Lightning ends after its epochs, at
            the end of each of which it steps with what has accumulated.
        eval_batch_size: Most samples per rank in validation, test and prediction. Default: `batch_size`.
        num_workers: Reader processes per rank; 0 reads in the training process. Never changes what is read.
        seed: Of order and augmentation.
        flip: Mirror training images with probability 1/2. Switch it off where left and right mean something.
        random_crop: Side of a random crop of the packed images (the central one in evaluation). Default: whole images.
        min_crop_fraction: Crop at a random scale, as ADM's `random_crop_arr` does: an image is first resized to a side
            that is drawn from `random_crop` to `random_crop / min_crop_fraction`, rounded up (in evaluation to
            `random_crop`, so that the whole is seen). Images must be packed at least as large. Default: crops are
            taken at the packed size.
        shuffle_shards: Shards whose samples are mixed with each other; as many are open in each reader.
        max_bad_fraction: Part of the samples of an epoch that may be broken. These are logged and left out.
        cache_dir: Where to keep local copies of compressed and remote shards. Default: they are held in memory.
        train_split: Name of the split for training.
        val_split: Name of the split for validation and test.
        predict_splits: Splits for prediction, one loader each, in this order. Default: all of the index.
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int,
        latents_dir: str | None = None,
        global_batch: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        flip: bool = True,
        random_crop: int | None = None,
        min_crop_fraction: float | None = None,
        shuffle_shards: int = 16,
        max_bad_fraction: float = 0.0,
        cache_dir: str | None = None,
        train_split: str = "train",
        val_split: str = "val",
        predict_splits: list[str] | None = None,
    ) -> None:
        super().__init__()
        for argument, value, low in (
            ("batch_size", batch_size, 1),
            ("global_batch", global_batch or batch_size, 1),
            ("eval_batch_size", eval_batch_size or batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("shuffle_shards", shuffle_shards, 1),
        ):
            if value < low:
                raise ValueError(f"data.{argument} is {value}, must be at least {low}")
        if not 0 <= max_bad_fraction < 1:
            raise ValueError(f"data.max_bad_fraction is {max_bad_fraction}, must be in [0, 1)")
        if min_crop_fraction is not None and (random_crop is None or not 0 < min_crop_fraction <= 1):
            raise ValueError(
                f"data.min_crop_fraction is {min_crop_fraction}, must be in (0, 1], with a data.random_crop, which is "
                f"{random_crop}; null crops at the packed size"
            )
        self.data_dir = data_dir
        self.latents_dir = latents_dir
        self.batch_size = batch_size
        self.global_batch = global_batch
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.augmentation = Augmentation(flip, random_crop, min_crop_fraction)
        self.shuffle_shards = shuffle_shards
        self.max_bad_fraction = max_bad_fraction
        self.cache_dir = cache_dir
        self.train_split = train_split
        self.val_split = val_split
        self._predict_splits = predict_splits
        self._train_loader: ShardLoader | None = None
        self._begin()

    @property
    def folder(self) -> str:
        """What is read: the latents where there are any."""
        return self.latents_dir or self.data_dir

    @cached_property
    def index(self) -> DatasetIndex:
        """What `folder` holds. Read at first use, so that a config can be built where its data is not."""
        index = DatasetIndex.load(self.data_dir) if self.latents_dir is None else self._load_latents()
        self._check_crop(index)
        return index

    @property
    def image_size(self) -> int:
        """Side of the images of a batch, or of those that its latents were made from."""
        return self.augmentation.crop or self.index.image_size

    @property
    def predict_splits(self) -> list[str]:
        """Which split each prediction loader (`dataloader_idx`) reads."""
        return list(self.index.splits) if self._predict_splits is None else self._predict_splits

    @property
    def num_train_samples(self) -> int:
        """Samples of an epoch; with `trainer.overfit_batches`, of so many batches."""
        total = self.index.num_samples(self.train_split)
        if self.trainer is None or not (wanted := self.trainer.overfit_batches):
            return total
        batch = self.batch_size * self._world_size
        num_batches = wanted if isinstance(wanted, int) else max(1, int(wanted * total / batch))
        return min(total, num_batches * batch)

    @property
    def accumulated(self) -> int | None:
        """Batches whose gradients make an optimizer step; None if a callback changes their number within the run."""
        if self.trainer is None:
            return 1
        return None if accumulation_scheduler(self.trainer) else self.trainer.accumulate_grad_batches

    @property
    def samples_per_step(self) -> int | None:
        """Training samples of an optimizer step, over all ranks and accumulated batches; None if they change."""
        return self.accumulated and self.accumulated * self.batch_size * self._world_size

    def steps_of_epochs(self, num_epochs: int) -> int:
        """Optimizer steps that Lightning takes in so many whole epochs, if `accumulated` is known."""
        batch = self.batch_size * self._world_size
        firsts = [-(-epoch * self.num_train_samples // batch) for epoch in range(num_epochs + 1)]
        return sum(-(-(end - first) // self.accumulated) for first, end in pairwise(firsts))

    def check_tokenizer(self, fingerprint: str) -> None:
        """Make sure that cached latents were made by the tokenizer at hand; images fit any.

        Args:
            fingerprint: `Tokenizer.fingerprint()`, after its weights were loaded.

        Raises:
            ValueError: Another one made them.
        """
        latents = self.index.latents
        if latents is not None and latents.fingerprint != fingerprint:
            raise ValueError(
                f"the latents in {self.folder} were made by {latents.tokenizer} with fingerprint "
                f"{latents.fingerprint}, the tokenizer of this run has {fingerprint}: load that tokenizer's weights, "
                "or cache latents again with `scalear predict`"
            )

    def setup(self, stage: str) -> None:
        """Check that trainer and dataset fit each other.

        Raises:
            ValueError: They do not; names the remedy.
        """
        trainer = self.trainer
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError("the data is split over ranks already: set trainer.use_distributed_sampler to false")
        if stage != TrainerFn.FITTING:
            for split in self.predict_splits if stage == TrainerFn.PREDICTING else [self.val_split]:
                self.index.shards(split)  # which may not be there
            return
        if trainer.reload_dataloaders_every_n_epochs != 1:
            raise ValueError(
                f"trainer.reload_dataloaders_every_n_epochs is {trainer.reload_dataloaders_every_n_epochs}, must be 1: "
                "each epoch has an order, and a number of batches, of its own"
            )
        if trainer.overfit_batches:
            trainer.limit_train_batches = 1.0  # of an epoch that has no other batches
        if self.global_batch is not None:
            self.check_global_batch()
            if trainer.max_steps == -1 and trainer.max_epochs != -1:
                num_steps = round(trainer.max_epochs * self.num_train_samples / self.global_batch)
                trainer.fit_loop.epoch_loop.max_steps = num_steps
        if not any(isinstance(callback, StreamPosition) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, StreamPosition(self))
            self._begin()

    def check_splits(self) -> None:
        """Find out what would refuse a training once it has begun.

        Raises:
            ValueError: A split is not there, or too small for a batch.
        """
        self.train_dataloader()
        if self.trainer.limit_val_batches:
            self.index.shards(self.val_split)

    def train_dataloader(self) -> ShardLoader:
        """Batches that begin in the current epoch and were not used yet."""
        if self._train_loader is None or self._train_loader.dataset.batches.batch_size != self.batch_size:
            self._train_loader = self._build_train_loader()
        # The epoch matters if the last one was cut short (limit_train_batches): the rest of its samples is skipped.
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        batches = self._train_loader.dataset.batches
        batches.seek(max(self.position, epoch * batches.num_samples), self.num_done)
        return self._train_loader

    def val_dataloader(self) -> ShardLoader:
        """This rank's share of the validation split, in order."""
        return self._build_eval_loader(self.val_split)

    def test_dataloader(self) -> ShardLoader:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[ShardLoader]:
        """This rank's share of each of `predict_splits`, in order."""
        warnings.filterwarnings("ignore", "You are using a custom batch sampler `EvalBatches` for prediction")
        return [self._build_eval_loader(split) for split in self.predict_splits]

    def state_dict(self) -> dict[str, Any]:
        """The resume point, and the stream in which it is one."""
        batches = {"num_done": self.num_done, "global_batch_size": self.batch_size * self._world_size}
        return {"position": self.position} | batches | self._stream()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a resume point. It counts samples, so another number of ranks or batch size continues just there.

        Raises:
            ValueError: It lies in another stream.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # a checkpoint may be tested on other data
        for name, here in self._stream().items():
            if state_dict[name] != here:
                raise ValueError(
                    f"the checkpoint was trained on data with {name} {state_dict[name]}, split {self.train_split!r} of "
                    f"{self.folder} and this config give {here}: the order of samples cannot be continued. Restore "
                    "the data and the config, or start a new run from the weights"
                )
        self.position = state_dict["position"]
        self.num_done = state_dict["num_done"] * state_dict["global_batch_size"] // (self.batch_size * self._world_size)
        if self.trainer is not None:  # an accumulation window begins here, also with batches of another size
            self.num_done -= self.num_done % (self.accumulated or 1)

    def _load_latents(self) -> DatasetIndex:
        """What `latents_dir` holds, compared with the images that it is said to be of."""
        images = DatasetIndex.load(self.data_dir)
        if images.kind != "images":
            raise ValueError(
                f"{self.data_dir} holds latents: give it as data.latents_dir, and the images that they were made of as "
                "data.data_dir"
            )
        if not Path(self.latents_dir, INDEX_NAME).exists():
            raise ValueError(
                f"there are no latents in {self.latents_dir}: `scalear predict` with the tokenizer makes them; set "
                "data.latents_dir to those of others, or to null to encode the images in every step"
            )
        latents = DatasetIndex.load(self.latents_dir)
        if latents.kind != "latents":
            raise ValueError(f"data.latents_dir must hold latents, but {self.latents_dir} holds images: set it")
        if latents.image_size < images.image_size:  # of central crops
            images = replace(images, image_size=latents.image_size)
        made_of = latents.latents.images
        here = _facts(images, latents.splits) | {f"checksum of {split}": images.checksum(split) for split in made_of}
        there = _facts(latents, latents.splits) | {f"checksum of {split}": made_of[split] for split in made_of}
        for name, theirs in there.items():
            if (ours := here[name]) != theirs:
                raise ValueError(
                    f"{self.latents_dir} holds latents of other images than {self.data_dir}: {name} is {theirs!r} "
                    f"there and {ours!r} here. Set data.latents_dir to latents of these, which `scalear predict` with "
                    "a tokenizer makes, or to null to encode the images in every step"
                )
        return latents

    def _check_crop(self, index: DatasetIndex) -> None:
        crop, fraction = self.augmentation.crop, self.augmentation.min_crop_fraction
        if crop is None:
            return
        if index.kind == "latents" or not 1 <= crop <= index.image_size:
            raise ValueError(
                f"data.random_crop is {crop}, but {self.folder} holds {index.kind} of images of side "
                f"{index.image_size}: only images can be cropped, and not to more than their size"
                + ("" if fraction is None else "; set data.min_crop_fraction to null, too")
            )
        if (side := self.augmentation.largest_side) > index.image_size:
            raise ValueError(
                f"data.min_crop_fraction {fraction} of a crop of {crop} resizes images to a side of up to {side}, but "
                f"{self.folder} holds images of side {index.image_size}, and enlarged ones are not sharp: pack (or "
                f"index) them at --image_size {side} or more, or set data.min_crop_fraction to null"
            )

    def check_global_batch(self) -> None:
        """Make sure that optimizer steps see `global_batch` samples, if that is set.

        Raises:
            ValueError: They do not; names the remedy.
        """
        trainer, wanted, actual = self.trainer, self.global_batch, self.samples_per_step
        if wanted in (None, actual):
            return
        if actual is None:
            raise ValueError(
                f"data.global_batch is {wanted}, and {type(accumulation_scheduler(trainer)).__name__} changes it "
                "within the run: remove that from trainer.callbacks, or set data.global_batch to null, and what would "
                "follow from it by hand (optimizer.lr, warmup_steps, total_steps)"
            )
        accumulated, ranks = self.accumulated, trainer.world_size
        remedies = [
            f"{name} to {value * wanted // actual}"
            for name, value in (
                ("trainer.accumulate_grad_batches", accumulated),
                ("data.batch_size", self.batch_size),
                ("trainer.num_nodes", trainer.num_nodes),
            )
            if value * wanted % actual == 0
        ]
        raise ValueError(
            f"data.global_batch is {wanted}, but {ranks // trainer.num_nodes} devices x {trainer.num_nodes} nodes x "
            f"batch_size {self.batch_size} x accumulate_grad_batches {accumulated} = {actual}: set "
            f"{', or '.join([*remedies, f'data.global_batch to {actual}'])}, which makes another recipe of it"
        )

    def _begin(self) -> None:
        self.position = 0  # samples of the stream that are used up
        self.num_done = 0  # batches of the current epoch that are used up

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _stream(self) -> dict[str, int | str]:
        """All that decides which sample has which position."""
        return {
            "num_samples": self.num_train_samples,
            "checksum": self.index.checksum(self.train_split),
            "seed": self.seed,
            "shuffle_shards": self.shuffle_shards,
        }

    def _build_train_loader(self) -> ShardLoader:
        sizes = [shard.num_samples for shard in self.index.shards(self.train_split)]
        overfit = self.num_train_samples if self.trainer is not None and self.trainer.overfit_batches else None
        plan = TrainPlan(sizes, self.seed, self.shuffle_shards, overfit)
        batches = TrainBatches(plan.num_samples, self.batch_size, self._rank, self._world_size)
        if batches.global_batch_size > plan.num_samples:
            raise ValueError(
                f"a global batch of {self.batch_size} x {self._world_size} ranks is larger than the {plan.num_samples} "
                f"samples of split {self.train_split!r}: lower data.batch_size"
            )
        return self._build_loader(self.train_split, batches, plan)

    def _build_eval_loader(self, split: str) -> ShardLoader:
        num_samples = self.index.num_samples(split)
        return self._build_loader(
            split, EvalBatches(num_samples, self.eval_batch_size, self._rank, self._world_size), None
        )

    def _build_loader(self, split: str, batches: TrainBatches | EvalBatches, plan: TrainPlan | None) -> ShardLoader:
        reader = ShardReader(self.folder, self.index, split, self.shuffle_shards, self.cache_dir)
        max_bad = int(self.max_bad_fraction * len(reader)) // self._world_size
        return ShardLoader.build(ShardDataset(reader, batches, self.augmentation, plan, max_bad), self.num_workers)


def _facts(index: DatasetIndex, splits: Iterable[str]) -> dict[str, Any]:
    """What latents have in common with their images."""
    facts = {name: getattr(index, name) for name in ("name", "image_size", "image_channels", "class_names")}
    return facts | {f"number of {split} samples": index.num_samples(split) for split in splits}
