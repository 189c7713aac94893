"""Training and testing a tokenizer, and the file it leaves behind."""

from collections.abc import Iterator

import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from scalear.data.batch import Batch
from scalear.draws import TRAINING, SeededDraws
from scalear.evaluation.fid import FeatureFID
from scalear.evaluation.images import make_grid, to_uint8
from scalear.evaluation.metric import require_finite
from scalear.fast.accelerate import accelerate
from scalear.idle_settings import idle_settings
from scalear.scales import ScaleSchedule
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.bottleneck import TrainingRequest
from scalear.tokenizers.objective import TokenizerLoss
from scalear.tokenizers.perceptual import LPIPS
from scalear.tokenizers.weights import begin_from
from scalear.training.dashboard import Charts
from scalear.training.frozen import freeze
from scalear.training.guarded_module import GuardedModule, mean_losses
from scalear.training.loggers import log_image, log_text
from scalear.training.optim import OptimizerSettings
from scalear.training.run_metrics import write_metrics
from scalear.training.tokenizer.checks import check_data, check_training
from scalear.training.tokenizer.export import export_tokenizer, other_step
from scalear.training.tokenizer.latent_sizes import RandomSizes
from scalear.training.tokenizer.latent_writer import LatentWriter
from scalear.training.tokenizer.metrics import TokenizerMetrics


class TokenizerModule(GuardedModule):
    """Trains a tokenizer on images; when training ends, measures its latents and exports it.

    Args:
        tokenizer: What is trained, or (`test`, `predict`) used: then it may also be a diffusers adapter.
        optimizer: AdamW and its schedule, for tokenizer and discriminator.
        loss: What is minimised.
        rfid: FID between images and reconstructions: a torchmetrics metric with `update(images, real=...)` on uint8.
        lpips: LPIPS between images and reconstructions, as a measure; as a loss it is `loss.perceptual`.
        seed: Names the posterior noise, with each sample's position in the stream.
        statistics_samples: Training images that the latent statistics are taken over; fewer if there are fewer.
        per_channel_std: Scale every latent channel to unit variance. False scales all by one number, like SD's
            scaling factor: channels of little energy, such as fine detail, then stay small, and a generator spends
            less on them.
        grid_images: Validation images shown in TensorBoard, originals above reconstructions; with a codebook, a few of
            them at every scale, too. 0 shows none.
        sizes: Latent sizes at which a scalable tokenizer is trained besides the full one; None for the full one alone.
        scales: Latent sizes that are measured one by one, for tokenizers with a codebook; one with scales of its own
            is measured at those.
        begin_from: Path of another tokenizer's `.safetensors`, such as a converted LlamaGen VQ-16: training
            begins with its encoder and decoder, and with all else that has the same shape.
        fast: Let parts take faster ways to the same results: `scalear.fast`.

    Attributes:
        codebook_loaded: Whether training goes on with the codebook of a file.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        optimizer: OptimizerSettings,
        loss: TokenizerLoss,
        rfid: Metric | None = None,
        lpips: LPIPS | None = None,
        seed: int = 0,
        statistics_samples: int = 10_000,
        per_channel_std: bool = True,
        grid_images: int = 16,
        sizes: RandomSizes | None = None,
        scales: str | list[int | list[int]] | None = None,
        begin_from: str | None = None,
        fast: bool = True,
    ) -> None:
        super().__init__()
        if statistics_samples < 1 or grid_images < 0:
            raise ValueError(
                f"need statistics_samples >= 1 and grid_images >= 0, got {statistics_samples} and {grid_images}"
            )
        self.tokenizer = tokenizer
        if fast:
            accelerate(tokenizer)
        self.optimizer = optimizer
        self.loss = loss
        if loss.perceptual is not None:
            freeze(loss, "perceptual")
        self.seed = seed
        self.statistics_samples = statistics_samples
        self.per_channel_std = per_channel_std
        self.grid_images = grid_images
        self.sizes = sizes
        self.begin_from = begin_from
        self.codebook_loaded = False
        schedule = tokenizer.schedule if scales is None else ScaleSchedule.parse(scales)
        self._num_tested = 0
        self.metrics = TokenizerMetrics(rfid, tokenizer.num_codes, schedule, lpips)

    def setup(self, stage: str) -> None:
        if self.trainer.datamodule is not None:
            check_data(self.tokenizer, self.loss, self.metrics.schedule, self.trainer.datamodule)
        if isinstance(self.metrics.rfid, FeatureFID) and stage != "predict":
            _ = self.metrics.rfid.extractor.network  # read now, not at the first validation
        if self.metrics.lpips is not None and stage != "predict":
            self.metrics.lpips.load_weights()
        if stage == "fit":
            check_training(self.tokenizer, self.loss, self.sizes, self.trainer)
            self._check_beginning()
            for line in self._idle():
                rank_zero_info(line)
            self.loss.load_weights()
        self.tokenizer.load_weights()
        if said := other_step(self.tokenizer):
            rank_zero_warn(said)
        self.codebook_loaded = self.tokenizer.has_weights
        if stage == "fit" and self.begin_from is not None:
            anew = begin_from(self.tokenizer, self.begin_from)
            self.codebook_loaded = "bottleneck.codebook" not in anew
            rank_zero_info(f"training begins from {self.begin_from}; initialised anew: {anew or 'nothing'}")

    def _check_beginning(self) -> None:
        if self.begin_from is not None and self.tokenizer.has_weights:
            raise ValueError(
                f"model.begin_from {self.begin_from} would replace the weights of model.tokenizer.weights: training "
                "begins with one of them, so leave out the other"
            )

    def _idle(self) -> Iterator[str]:
        """What is said of settings that the others leave without effect."""
        if self.sizes is None:
            yield from idle_settings(TokenizerLoss, "model.sizes is null", size_exponent=self.loss.size_exponent)
        if not self.tokenizer.has_posterior:
            measured = {"statistics_samples": self.statistics_samples, "per_channel_std": self.per_channel_std}
            yield from idle_settings(TokenizerModule, f"{self.tokenizer.title} has no posterior", **measured)

    @property
    def charts(self) -> dict[str, Charts]:
        # Of all that training logs. Beside it may be generators, which log losses of scales and accuracy.
        losses = {**super().charts["losses"]}
        losses["parts of a tokenizer's loss"] = ["train/(?!loss|accuracy|lr$|grad_norm$)((?!_scale_).)+$"]
        if self.sizes is not None:
            losses["L1 of each size"] = ["train/l1_scale_"]
        quality = {"rFID": ["val/rfid$"], "PSNR": ["val/psnr$"]}
        if self.tokenizer.num_codes is not None:
            quality["share of codes in use"] = ["val/usage$"]
        if self.metrics.schedule is not None:
            quality["PSNR of each scale"] = ["val/psnr_scale_"]
        return {"losses": losses, "quality": quality}

    def configure_callbacks(self) -> list[Callback]:
        """What writes latents, where the config's list has nothing that does: they would be computed for nobody."""
        writes = any(isinstance(callback, LatentWriter | BasePredictionWriter) for callback in self.trainer.callbacks)
        return [] if writes or self.trainer.state.fn != TrainerFn.PREDICTING else [LatentWriter()]

    def configure_optimizers(self) -> dict:
        return self.build_optimizer(self.optimizer, [self.tokenizer, self.loss])

    def clipped_parts(self) -> list[nn.Module]:
        """One optimizer, two players with an adversarial loss: neither may shorten the other's gradient."""
        return [self] if self.loss.adversarial is None else [self.tokenizer, self.loss]

    def request(self, batch: Batch) -> TrainingRequest:
        """What the next training pass over a batch needs beside its images."""
        draws = SeededDraws.of_batch(self.seed, TRAINING, batch.position, self.device)
        full = self.tokenizer.latent_size(batch.inputs.shape[-2:])
        sizes = self.sizes.draw(self.seed, self.global_step, full) if self.sizes else ()
        return TrainingRequest(draws, sizes, self.loss.penalty_weights)

    def training_step(self, batch: Batch, batch_index: int) -> dict:
        reconstructions = self.tokenizer.reconstruct(batch.inputs, self.request(batch))
        terms = self.loss(reconstructions, self.tokenizer.last_layer, self.global_step)
        for name, value in mean_losses(self.trainer, terms, batch).items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch))
        return {"loss": terms["loss"], "quantized": [r.quantized for r in reconstructions]}

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        reconstructed = self.metrics.update(self.tokenizer, batch.inputs)
        self.log_dict({f"val/{name}": metric for name, metric in self.metrics.named().items()}, batch_size=len(batch))
        if batch_index == 0 and self.grid_images:
            self._show(batch.inputs[: self.grid_images], reconstructed[: self.grid_images])

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self.validation_step(batch, batch_index)
        self._num_tested += len(batch)

    def on_test_start(self) -> None:
        self._num_tested = 0

    def on_test_epoch_end(self) -> None:
        values = {name: metric.compute().item() for name, metric in self.metrics.named().items()}
        require_finite(values)
        count = int(self.trainer.strategy.reduce(torch.tensor(self._num_tested, device=self.device), reduce_op="sum"))
        line = self.metrics.line(values, count, self.trainer)
        rank_zero_info(f"\n{self.metrics.table(values)}\n{line}")
        if self.trainer.is_global_zero:
            write_metrics(self.trainer, values | {"line": line})
            log_text(self.loggers, "test/line", line)

    def predict_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Moments of the images and of their mirror images."""
        return {
            "moments": self.tokenizer.moments(batch.inputs),
            "flipped": self.tokenizer.moments(batch.inputs.flip(-1)),
        }

    def export(self) -> None:
        export_tokenizer(self.tokenizer, self.trainer, self.statistics_samples, self.per_channel_std)

    def _show(self, image_BCHW: Tensor, reconstructed: Tensor) -> None:
        """Log images above reconstructions; of a few images also those of each scale, coarse to fine."""
        self._log_grid("val/reconstructions", [to_uint8(image_BCHW), reconstructed])
        if self.metrics.schedule is not None:
            image_BCHW = image_BCHW[:_COLUMNS_OF_SCALES]
            latent_BChw, size = self.tokenizer.encode(image_BCHW), image_BCHW.shape[-2:]
            steps = self.tokenizer.quantizer.scale_by_scale(latent_BChw, self.metrics.schedule)
            rows = [F.interpolate(self.tokenizer.decode(partial_BChw), size) for _, partial_BChw in steps]
            self._log_grid("val/reconstructions_of_scales", [to_uint8(row) for row in (image_BCHW, *rows)])

    def _log_grid(self, tag: str, rows: list[Tensor]) -> None:
        log_image(self.loggers, tag, make_grid(torch.cat(rows), columns=len(rows[0]), scale=2), self.global_step)


_COLUMNS_OF_SCALES = 4
