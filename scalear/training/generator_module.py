"""Training, sampling and measuring a generator."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scalear.data.batch import Batch
from scalear.draws import DROPOUT, TRAINING, VALIDATION, SeededDraws, stream_seed
from scalear.evaluation.images import to_uint8
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.models.generator import Generator, Loss
from scalear.tokenizers.base import Tokenizer
from scalear.training.frozen import freeze
from scalear.training.gradients import GuardedModule
from scalear.training.losses import mean_losses
from scalear.training.optim import OptimizerSettings
from scalear.training.report import SampleReport
from scalear.training.sampling import SampleRequest, SampleStore


class GeneratorModule(GuardedModule):
    """A generator on top of a frozen tokenizer.

    `fit` learns from images or cached latents; `predict` samples the requested labels into `samples.npz` and
    `grid.png`; `test` does the same and measures the samples.

    Args:
        generator: What is trained.
        tokenizer: Images to latents and back; frozen, and not part of checkpoints.
        optimizer: AdamW and its schedule.
        solver: Flow solver of all sampling.
        guidance: Classifier-free guidance of all sampling.
        samples: What `test` and `predict` sample.
        report: How `test` measures samples; None writes them only.
        sample_posterior: Train on samples of the tokenizer's posterior instead of its mode.
        compile: Compile transformer and head in `fit`. Pays on long runs; the first steps take minutes.
        seed: Of training draws and of the grids in TensorBoard.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        optimizer: OptimizerSettings,
        solver: FlowSolver,
        guidance: Guidance,
        samples: SampleRequest,
        report: SampleReport | None = None,
        sample_posterior: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.tokenizer = tokenizer
        self.optimizer = optimizer
        self.samples = samples
        self.report = report
        self.solver = solver
        self.guidance = guidance
        self.sample_posterior = sample_posterior
        self.compile_parts = compile
        self.seed = seed
        self._store: SampleStore | None = None
        self._fingerprint = ""
        freeze(self, "tokenizer")

    def setup(self, stage: str) -> None:
        self.tokenizer.load_weights()
        self._fingerprint = self.tokenizer.fingerprint()
        if stage in ("fit", "validate"):
            self._check_data()
        if stage == "fit":
            if self.compile_parts:
                self.generator.transformer.compile()
                self.generator.head.compile()
        elif stage in ("test", "predict"):
            self.samples.labels(self.generator.num_classes)

    def configure_optimizers(self) -> dict:
        return self.optimizer.build(self.generator)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["tokenizer_fingerprint"] = self._fingerprint

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        trained_with = checkpoint.get("tokenizer_fingerprint")
        if trained_with != self._fingerprint:
            raise ValueError(
                f"the generator was trained on latents of a tokenizer with fingerprint {trained_with}, this config's "
                f"has {self._fingerprint}: set tokenizer.weights to the file that was used then"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout alone draws from the global generator; a resumed run drops what the uninterrupted one would have.
        torch.manual_seed(stream_seed((self.seed, DROPOUT, int(batch.position[0]))))
        loss = self._loss(batch, [(self.seed, TRAINING, position) for position in batch.position.tolist()])
        for name, value in mean_losses(self.trainer, self._terms(loss), batch).items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch))
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        draws = [(self.seed, VALIDATION, position) for position in batch.position.tolist()]
        for name, value in self._terms(self._loss(batch, draws)).items():
            self.log(f"val/{name}", value, prog_bar=name == "loss", sync_dist=True, batch_size=len(batch))

    def test_dataloader(self) -> DataLoader:
        return self.samples.loader(self.generator.num_classes, self.global_rank, self.trainer.world_size)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def on_test_start(self) -> None:
        labels = self.samples.labels(self.generator.num_classes)
        self._store = SampleStore(self.trainer.default_root_dir, labels, self.trainer)

    def on_predict_start(self) -> None:
        self.on_test_start()

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        index_B, label_B = batch
        streams = [(self.samples.seed, index) for index in index_B.tolist()]
        self._store.add(index_B, to_uint8(self._generate(label_B, streams)))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        images = self._store.close(self.samples)
        if images is not None and self.report is not None:
            self.report.measure(images, self._store.labels, self)

    def on_predict_epoch_end(self) -> None:
        self._store.close(self.samples)

    @torch.no_grad()
    def generate_images(self, label_B: Tensor) -> Tensor:
        """Images of the given labels, image_BCHW in [-1, 1], with the seeds (seed, 0), (seed, 1) ..."""
        training = self.generator.training
        self.generator.eval()
        with self.trainer.precision_plugin.forward_context():
            images = self._generate(label_B.to(self.device), [(self.seed, index) for index in range(len(label_B))])
        self.generator.train(training)
        return images

    @torch.no_grad()
    def pyramid_images(self, batch: Batch, count: int) -> Tensor:
        """The first real images of a batch at every scale, coarse to fine, each scale a row of `count` images."""
        draws = SeededDraws([(self.seed, index) for index in range(len(batch))], self.device)
        latent_BChw = self._latent(batch, draws)[:count]
        pyramid = self.generator.pyramid.build(latent_BChw, self.generator.schedule)
        rows = []
        for k in range(pyramid.schedule.num_scales):
            coarse = self.generator.pyramid.latent(pyramid.targets[: k + 1], pyramid.schedule.up_to(k))
            rows.append(self.tokenizer.decode(torch.nn.functional.interpolate(coarse, latent_BChw.shape[-2:])))
        return torch.cat(rows)

    def _loss(self, batch: Batch, streams: list[tuple[int, ...]]) -> Loss:
        draws = SeededDraws(streams, self.device)
        pyramid = self.generator.pyramid.build(self._latent(batch, draws), self.generator.schedule)
        return self.generator.loss(pyramid, batch.label, draws)

    @torch.no_grad()
    def _latent(self, batch: Batch, draws: SeededDraws) -> Tensor:
        moments = batch.inputs if batch.kind == "latents" else self.tokenizer.moments(batch.inputs)
        noise = None
        if self.sample_posterior:
            noise = draws.normal("posterior", self.tokenizer.latent_channels, *moments.shape[-2:])
        return self.tokenizer.latent(moments, noise)

    def _generate(self, label_B: Tensor, streams: list[tuple[int, ...]]) -> Tensor:
        draws = SeededDraws(streams, self.device)
        return self.tokenizer.decode(self.generator.generate(label_B, draws, self.solver, self.guidance))

    def _terms(self, loss: Loss) -> dict[str, Tensor]:
        """The losses as they are logged: in all, and of each scale."""
        names = [f"loss_scale_{size}" for size in self.generator.schedule.names]
        return {"loss": loss.total, **dict(zip(names, loss.per_scale, strict=True))}

    def _check_data(self) -> None:
        data = self.trainer.datamodule
        if data is None:
            return
        data.check_tokenizer(self._fingerprint)
        index = data.index
        if index.num_classes not in (0, self.generator.num_classes):
            raise ValueError(
                f"{data.data_dir} has {index.num_classes} classes, the generator {self.generator.num_classes}: "
                f"set transformer.num_classes to {index.num_classes}"
            )
        if index.image_channels != self.tokenizer.image_channels:
            raise ValueError(
                f"{data.data_dir} holds images of {index.image_channels} channel(s), the tokenizer is built for "
                f"{self.tokenizer.image_channels}"
            )
        side = data.random_crop or index.image_size
        self.generator.check_latent(self.tokenizer.latent_channels, self.tokenizer.latent_size((side, side)))
