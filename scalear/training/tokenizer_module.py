"""Training and testing a tokenizer, and the file it leaves behind."""

from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from scalear.data.batch import Batch
from scalear.draws import TRAINING, SeededDraws
from scalear.evaluation.fid import FeatureFID
from scalear.evaluation.images import make_grid, to_uint8
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.files import save_tokenizer
from scalear.tokenizers.losses import TokenizerLoss
from scalear.tokenizers.trainable import TrainingRequest
from scalear.training.frozen import freeze
from scalear.training.gradients import GuardedModule
from scalear.training.latent_statistics import measure_latents, store_statistics
from scalear.training.losses import mean_losses
from scalear.training.optim import OptimizerSettings
from scalear.training.report import write_metrics
from scalear.training.tokenizer_checks import check_data, check_training

EXPORT_NAME = "tokenizer.safetensors"


class TokenizerModule(GuardedModule):
    """Trains a tokenizer on images; when training ends, measures its latents and exports it.

    Args:
        tokenizer: What is trained, or (`test`, `predict`) used: then it may also be a diffusers adapter.
        optimizer: AdamW and its schedule, for tokenizer and discriminator.
        loss: What is minimised.
        rfid: FID between images and reconstructions: a torchmetrics metric with `update(images, real=...)` on uint8.
        seed: Names the posterior noise, with each sample's position in the stream.
        statistics_samples: Training images that the latent statistics are taken over; fewer if there are fewer.
        per_channel_std: Scale every latent channel to unit variance. False scales all by one number, like SD's
            scaling factor: channels of little energy, such as fine detail, then stay small, and a generator spends
            less on them.
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
        per_channel_std: bool = True,
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
        self.per_channel_std = per_channel_std
        self.grid_images = grid_images
        self.psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))  # per image, then averaged
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)

    def setup(self, stage: str) -> None:
        if self.trainer.datamodule is not None:
            check_data(self.tokenizer, self.loss, self.trainer.datamodule)
        if isinstance(self.rfid, FeatureFID) and stage != "predict":
            _ = self.rfid.extractor.network  # read now: a missing file shall not stop the run at its first validation
        if stage == "fit":
            check_training(self.tokenizer, self.loss, self.trainer)
            self.loss.load_weights()
        self.tokenizer.load_weights()

    def configure_optimizers(self) -> dict:
        return self.optimizer.build([self.tokenizer, self.loss])

    def clipped_parts(self) -> list[nn.Module]:
        """One optimizer, two players with an adversarial loss: neither may shorten the other's gradient."""
        return [self] if self.loss.adversarial is None else [self.tokenizer, self.loss]

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        draws = SeededDraws([(self.seed, TRAINING, position) for position in batch.position.tolist()], self.device)
        request = TrainingRequest(draws, penalties=self.loss.penalty_weights)
        reconstructions = self.tokenizer.reconstruct(batch.inputs, request)
        terms = self.loss(reconstructions, self.tokenizer.last_layer, self.global_step)
        for name, value in mean_losses(self.trainer, terms, batch).items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch))
        return terms["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Images against reconstructions, both rounded to 8 bits."""
        original = to_uint8(batch.inputs)
        reconstructed = to_uint8(self.tokenizer.reconstruction(batch.inputs))
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

    def predict_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Moments of the images and of their mirror images."""
        return {
            "moments": self.tokenizer.moments(batch.inputs),
            "flipped": self.tokenizer.moments(batch.inputs.flip(-1)),
        }

    @torch.no_grad()
    def on_train_end(self) -> None:
        # Callbacks went first: with weight averaging the tokenizer already holds the average.
        self.tokenizer.eval()
        measure_latents(
            self.tokenizer, self._plain_training_batches(), self.statistics_samples, self.trainer, self.per_channel_std
        )
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

    def _log_grid(self, original: Tensor, reconstructed: Tensor) -> None:
        grid = make_grid(torch.cat([original, reconstructed]), columns=len(original), scale=2)
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/reconstructions", grid, self.global_step, dataformats="HWC")
