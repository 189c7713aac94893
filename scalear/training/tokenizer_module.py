"""Training and testing a tokenizer, and the file it leaves behind."""

import json
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from scalear.data.batch import Batch
from scalear.data.index import write_atomically
from scalear.draws import SeededDraws
from scalear.evaluation.images import make_grid, to_uint8
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.files import save_tokenizer
from scalear.tokenizers.losses import TokenizerLoss
from scalear.training.optim import OptimizerSettings

EXPORT_NAME = "tokenizer.safetensors"


class TokenizerModule(LightningModule):
    """Trains a tokenizer on images; when training ends, measures its latents and exports it.

    Args:
        tokenizer: What is trained.
        optimizer: AdamW and its schedule.
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
        self.rfid = rfid
        self.seed = seed
        self.statistics_samples = statistics_samples
        self.grid_images = grid_images
        self.psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))  # per image, then averaged
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)

    def setup(self, stage: str) -> None:
        self.tokenizer.load_weights()

    def configure_optimizers(self) -> dict:
        return self.optimizer.build(self.tokenizer)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        draws = SeededDraws([(self.seed, int(position)) for position in batch.position], self.device)
        height, width = self.tokenizer.latent_size(batch.inputs.shape[-2:])
        noise_BChw = draws.normal("posterior", self.tokenizer.latent_channels, height, width)
        terms = self.loss(batch.inputs, self.tokenizer.reconstruct(batch.inputs, noise_BChw))
        if not torch.isfinite(terms["loss"]):
            values = {name: value.item() for name, value in terms.items()}
            raise ValueError(f"loss is not finite at step {self.global_step}: {values}; batch keys {batch.keys}")
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=len(batch))
        return terms["loss"]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        reconstruction_BCHW = self.tokenizer.decode(self.tokenizer.encode(batch.inputs))
        original, reconstructed = to_uint8(batch.inputs), to_uint8(reconstruction_BCHW)
        self.psnr.update(reconstructed / 255, original / 255)
        self.ssim.update(reconstructed / 255, original / 255)
        metrics = {"val/psnr": self.psnr, "val/ssim": self.ssim}
        if self.rfid is not None:
            self.rfid.update(original, real=True)
            self.rfid.update(reconstructed, real=False)
            metrics["val/rfid"] = self.rfid
        self.log_dict(metrics, batch_size=len(batch))
        if batch_index == 0:
            self._log_grid(original[: self.grid_images], reconstructed[: self.grid_images])

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self.validation_step(batch, batch_index)

    def on_test_epoch_end(self) -> None:
        metrics = {"val/psnr": self.psnr, "val/ssim": self.ssim}
        if self.rfid is not None:
            metrics["val/rfid"] = self.rfid
        results = {name: float(metric.compute()) for name, metric in metrics.items()}
        rank_zero_info("  ".join(f"{name} {value:.4f}" for name, value in results.items()))
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / "metrics.json"
            write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Moments of the images and of their mirror images."""
        return {
            "moments": self.tokenizer.moments(batch.inputs),
            "flipped": self.tokenizer.moments(batch.inputs.flip(-1)),
        }

    def on_train_end(self) -> None:
        # Callbacks go first: with weight averaging the model already holds the average.
        self._measure_latents()
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / EXPORT_NAME
            save_tokenizer(self.tokenizer, path)
            rank_zero_info(f"tokenizer exported to {path}")

    @torch.no_grad()
    def _measure_latents(self) -> None:
        """Mean and standard deviation of posterior samples per channel, over training images of all ranks."""
        self.tokenizer.eval()
        quota = -(-self.statistics_samples // self.trainer.world_size)
        sums = torch.zeros(3, self.tokenizer.latent_channels, dtype=torch.float64, device=self.device)
        seen = 0
        for batch in self._statistics_batches():
            images = batch.inputs[: quota - seen].to(self.device)
            with self.trainer.precision_plugin.forward_context():
                posterior = self.tokenizer.posterior(images)
            mean, variance = posterior.mean_BChw.double(), posterior.logvar_BChw.double().exp()
            sums += torch.stack([x.sum((0, 2, 3)) for x in (torch.ones_like(mean), mean, mean.square() + variance)])
            seen += len(images)
            if seen >= quota:
                break
        count, first, second = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.tokenizer.latent_mean.copy_(first / count)
        self.tokenizer.latent_std.copy_((second / count - (first / count).square()).sqrt())

    def _statistics_batches(self):
        return self.trainer.train_dataloader

    def _log_grid(self, original: Tensor, reconstructed: Tensor) -> None:
        grid = make_grid(torch.cat([original, reconstructed]), columns=len(original), scale=2)
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/reconstructions", grid, self.global_step, dataformats="HWC")
