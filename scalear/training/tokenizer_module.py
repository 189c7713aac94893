"""Training and testing a tokenizer, and the file it leaves behind."""

from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from scalear.data.batch import Batch
from scalear.data.datamodule import ShardDataModule
from scalear.draws import SeededDraws
from scalear.evaluation.fid import FeatureFID
from scalear.evaluation.images import make_grid, to_uint8
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.files import save_tokenizer
from scalear.tokenizers.losses import TokenizerLoss
from scalear.tokenizers.trainable import TrainableTokenizer
from scalear.training.frozen import freeze
from scalear.training.latent_statistics import measure_latents, store_statistics
from scalear.training.optim import OptimizerSettings
from scalear.training.report import write_metrics

EXPORT_NAME = "tokenizer.safetensors"


class TokenizerModule(LightningModule):
    """Trains a tokenizer on images; when training ends, measures its latents and exports it.

    Args:
        tokenizer: What is trained, or (`test`, `predict`) used: then it may also be a diffusers adapter.
        optimizer: AdamW and its schedule, for tokenizer and discriminator.
        loss: What is minimised.
        rfid: FID between images and reconstructions: a torchmetrics metric with `update(images, real=...)` on uint8.
        seed: Names the posterior noise, with each sample's position in the stream.
        statistics_samples: Training images that the latent statistics are taken over; fewer if there are fewer.
        grid_images: Validation images shown in TensorBoard, originals above reconstructions.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        optimizer: OptimizerSettings,
        loss: TokenizerLoss,
        rfid: Metric | None = None,
        seed: int = 0,
        statistics_samples: int = 10_000,
        grid_images: int = 16,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.optimizer = optimizer
        self.loss = loss
        if loss.perceptual is not None:
            freeze(loss, "perceptual")
        self.rfid = rfid
        self.seed = seed
        self.statistics_samples = statistics_samples
        self.grid_images = grid_images
        self.psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))  # per image, then averaged
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)

    def setup(self, stage: str) -> None:
        if self.trainer.datamodule is not None:
            self._check_data(self.trainer.datamodule)
        if isinstance(self.rfid, FeatureFID):
            _ = self.rfid.extractor.network  # read now: a missing file shall not stop the run at its first validation
        if stage == "fit":
            self._check_training()
            self.loss.load_weights()
        self.tokenizer.load_weights()

    def configure_optimizers(self) -> dict:
        return self.optimizer.build([self.tokenizer, self.loss])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.loss.adversarial is None or not gradient_clip_val:
            return self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        # One optimizer, two players: neither may shorten the other's gradient.
        clip_value = torch.nn.utils.clip_grad_value_
        clip = clip_value if gradient_clip_algorithm == "value" else torch.nn.utils.clip_grad_norm_
        for player in (self.tokenizer, self.loss):
            clip(player.parameters(), gradient_clip_val)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        draws = SeededDraws([(self.seed, int(position)) for position in batch.position], self.device)
        latent_shape = self.tokenizer.latent_channels, *self.tokenizer.latent_size(batch.inputs.shape[-2:])
        reconstruction = self.tokenizer.reconstruct(batch.inputs, draws.normal("posterior", *latent_shape))
        terms = self.loss(batch.inputs, reconstruction, self.tokenizer.last_layer, self.global_step)
        if not torch.isfinite(terms["loss"]):
            values = {name: value.item() for name, value in terms.items()}
            raise ValueError(f"the loss is not finite at step {self.global_step}: {values}; batch keys: {batch.keys}")
        self.log("train/loss", terms["loss"], prog_bar=True, batch_size=len(batch))
        parts = {f"train/{name}": value for name, value in terms.items() if name != "loss"}
        self.log_dict(parts, batch_size=len(batch))
        return terms["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        original = to_uint8(batch.inputs)
        reconstructed = to_uint8(self.tokenizer.decode(self.tokenizer.encode(batch.inputs)))
        self.psnr.update(reconstructed / 255, original / 255)
        self.ssim.update(reconstructed / 255, original / 255)
        if self.rfid is not None:
            self.rfid.update(original, real=True)
            self.rfid.update(reconstructed, real=False)
        self.log_dict(self._metrics(), batch_size=len(batch))
        if batch_index == 0:
            self._log_grid(original[: self.grid_images], reconstructed[: self.grid_images])

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self.validation_step(batch, batch_index)

    def on_test_epoch_end(self) -> None:
        results = {name: metric.compute().item() for name, metric in self._metrics().items()}
        rank_zero_info("  ".join(f"{name} {value:.4f}" for name, value in results.items()))
        if self.trainer.is_global_zero:
            write_metrics(self.trainer.default_root_dir, results)

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Moments of the images and of their mirror images."""
        return {
            "moments": self.tokenizer.moments(batch.inputs),
            "flipped": self.tokenizer.moments(batch.inputs.flip(-1)),
        }

    @torch.no_grad()
    def on_train_end(self) -> None:
        # Callbacks went first: with weight averaging the tokenizer already holds the average.
        self.tokenizer.eval()
        measure_latents(self.tokenizer, self._plain_training_batches(), self.statistics_samples, self.trainer)
        if self.trainer.is_global_zero:
            store_statistics(self.tokenizer, "tokenizer.", self.trainer)
            path = Path(self.trainer.default_root_dir, EXPORT_NAME)
            save_tokenizer(self.tokenizer, path)
            rank_zero_info(f"tokenizer exported to {path}")

    def _metrics(self) -> dict[str, Metric]:
        metrics = {"val/psnr": self.psnr, "val/ssim": self.ssim, "val/rfid": self.rfid}
        return {name: metric for name, metric in metrics.items() if metric is not None}

    def _plain_training_batches(self) -> Iterable[Batch]:
        """Training images without augmentation, as they are served for caching latents."""
        data = self.trainer.datamodule
        if data is None:
            return self.trainer.train_dataloader
        return data.predict_dataloader()[data.predict_splits.index(data.train_split)]

    def _check_data(self, data: ShardDataModule) -> None:
        index, tokenizer = data.index, self.tokenizer
        if index.kind != "images":
            raise ValueError(f"a tokenizer needs images, but {data.data_dir} holds {index.kind}")
        if index.image_channels != tokenizer.image_channels:
            raise ValueError(
                f"{data.data_dir} holds images of {index.image_channels} channel(s), the tokenizer is built for "
                f"{tokenizer.image_channels}: set tokenizer.image_channels to {index.image_channels}"
            )
        size = data.random_crop or index.image_size
        tokenizer.latent_size((size, size))
        if self.loss.adversarial is not None:
            self.loss.adversarial.discriminator.check_size((size, size))

    def _check_training(self) -> None:
        if not isinstance(self.tokenizer, TrainableTokenizer):
            name = type(self.tokenizer).__name__
            raise ValueError(f"{name} cannot be trained here, only tested and used: fit a KLAutoencoder instead")
        data = self.trainer.datamodule
        if data is not None and data.train_split not in data.predict_splits:
            raise ValueError(f"data.predict_splits lacks {data.train_split!r}, on which the latents are measured")
        precision = self.trainer.precision_plugin
        if self.loss.adversarial is not None and isinstance(precision, MixedPrecision) and precision.scaler is not None:
            raise ValueError("the adversarial loss does not support 16-mixed: set trainer.precision to bf16-mixed")

    def _log_grid(self, original: Tensor, reconstructed: Tensor) -> None:
        grid = make_grid(torch.cat([original, reconstructed]), columns=len(original), scale=2)
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/reconstructions", grid, self.global_step, dataformats="HWC")
