"""Training, sampling and measuring a generator.

Legend: B batch, C channels, h w latent, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from scalear.data.batch import Batch
from scalear.distributed.patient_ranks import PatientRanks
from scalear.draws import DROPOUT, TRAINING, VALIDATION, SeededDraws, stream_seed
from scalear.evaluation.image_set import SampleSet
from scalear.evaluation.images import to_uint8
from scalear.fast.compile import compile_blocks
from scalear.guidance import Guidance
from scalear.idle_settings import idle_settings
from scalear.image_model import ImageModel
from scalear.models.generator import Loss
from scalear.models.head import Head
from scalear.models.transformer import ScaleTransformer
from scalear.models.weights import load_generator
from scalear.pyramid import Content, Pyramid
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule
from scalear.schedules import ScheduleSampler
from scalear.tokenizers.base import Tokenizer
from scalear.training.dashboard import Charts
from scalear.training.frozen import freeze
from scalear.training.generator.checks import check_all_batches, check_data, check_fingerprint
from scalear.training.generator.report import SampleReport
from scalear.training.generator.sample_store import Origin, SampleStore
from scalear.training.generator.samples import SampleRequest
from scalear.training.guarded_module import GuardedModule, mean_losses
from scalear.training.optim import OptimizerSettings
from scalear.training.tokenizer.export import other_step


class GeneratorModule(GuardedModule):
    """A generator on top of a frozen tokenizer.

    `fit` learns from images or cached latents; `predict` samples the requested labels into `samples.npz` and
    `grid.png`; `test` does the same and measures the samples. Both go on where a killed job was.

    Args:
        tokenizer: Images to latents and back; frozen, and not part of checkpoints.
        pyramid: What is predicted at each scale: called with the tokenizer.
        transformer: Called with the channels of a context token.
        head: How a scale is predicted: called with the content of a scale, the transformer's width and the schedule.
        optimizer: AdamW and its schedule.
        sampling: How all sampling is done: the settings that the head takes.
        guidance: Classifier-free guidance of all sampling.
        samples: What `test` and `predict` sample.
        label_drop_prob: Share of training samples whose label becomes the null class.
        report: How `test` measures samples, and `SampleScore` in training; None: `test` writes them only.
        schedules: Draws the scales of every training step, or batch; None trains on those of the generator. Validation
            and sampling use the generator's, unless `samples` names others.
        sample_posterior: Train on samples of the tokenizer's posterior instead of its mode.
        weights: File of `scalear convert` to start from, or to sample from without a checkpoint. In `fit`, tables of
            another number of classes or other scales than the file's start afresh.
        fast: Let parts take faster ways to the same results: `scalear.fast`.
        compile: Compile the blocks by torch.compile, for training and sampling: `scalear.fast.compile`. Pays in long
            runs only.
        seed: Of training draws and of the grids in TensorBoard.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pyramid: Callable[[Tokenizer], Pyramid],
        transformer: Callable[[int], ScaleTransformer],
        head: Callable[[Content, int, ScaleSchedule], Head],
        optimizer: OptimizerSettings,
        sampling: Sampling,
        guidance: Guidance,
        samples: SampleRequest,
        label_drop_prob: float = 0.1,
        report: SampleReport | None = None,
        schedules: ScheduleSampler | None = None,
        sample_posterior: bool = True,
        weights: str | None = None,
        fast: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = ImageModel(tokenizer, pyramid, transformer, head, sampling, guidance, label_drop_prob, fast)
        self.optimizer = optimizer
        self.samples = samples
        self.report = report
        self.schedules = schedules
        self.sample_posterior = sample_posterior
        self.weights = weights
        self.seed = seed
        self._fingerprint = ""
        # Of `test` and `predict`
        self._origin: Origin | None = None
        self._anew = False
        self._ranks: PatientRanks | None = None
        self._store: SampleStore | None = None
        freeze(self, "model.tokenizer")
        if compile:
            compile_blocks(self.model.generator)

    def setup(self, stage: str) -> None:
        model = self.model
        # Also in `fit`, whose first grid may be hours away.
        label_N = self.samples.labels(model.num_classes)
        schedule = self.samples.schedule(model.schedule)
        model.check(schedule)
        model.sampling.check(schedule, model.guidance)
        model.tokenizer.load_weights()
        if said := other_step(model.tokenizer):
            rank_zero_warn(said)
        if self.weights is not None:
            rank_zero_info(load_generator(model.generator, self.weights, fine_tune=stage == "fit"))
        self._fingerprint = model.tokenizer.fingerprint()
        for line in self._idle(stage, schedule):
            rank_zero_info(line)
        if stage in ("fit", "validate") and self.trainer.datamodule is not None:
            check_data(self.trainer.datamodule, model, self._fingerprint, self.schedules)
        if stage == "test" and self.report is not None:
            self.report.check(model.image_size(schedule))
        if stage in ("test", "predict"):
            check_all_batches(self.trainer)
            shape = (*model.image_size(schedule), model.tokenizer.image_channels)
            self._ranks = PatientRanks.connect()
            self._store = SampleStore(self.trainer.default_root_dir, label_N, shape, self._origin)
            self._store.check_space(self._anew)

    def _idle(self, stage: str, schedule: ScaleSchedule) -> Iterator[str]:
        """What is said of settings that the others leave without effect."""
        model = self.model
        if stage == "fit" and self.sample_posterior and not model.tokenizer.has_posterior:
            yield f"sample_posterior is not used: the latents of {model.tokenizer.title} have no posterior"
        if not model.num_classes:
            yield from idle_settings(Guidance, "there are no classes to guide to", weight=model.guidance.weight)
        yield from model.sampling.idle(schedule)
        yield from self.samples.idle()

    def know_samples_by(self, origin: Origin, anew: bool = False) -> None:
        """Let `test` and `predict` find samples again that are there; by default they begin anew.

        Args:
            origin: What their samples follow from.
            anew: Sample also what is complete.
        """
        self._origin, self._anew = origin, anew

    @property
    def charts(self) -> dict[str, Charts]:
        losses = {**super().charts["losses"], "loss of each scale": ["train/loss_scale_"]}
        losses["loss of each scale in validation"] = ["val/loss_scale_"]
        # Of SampleScore, whose names end with how many samples, and of `test`.
        fid = ["test/fid(_floor)?$", r"val/fid_\d"]
        labels = [r"test/(accuracy|precision|recall)$", r"val/(accuracy|precision|recall)_\d"]
        return {"losses": losses, "quality": {"FID": fid, "samples that are of their class, precision, recall": labels}}

    def configure_optimizers(self) -> dict:
        return self.build_optimizer(self.optimizer, self.model.generator)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokenizer_fingerprint"] = self._fingerprint

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        check_fingerprint(checkpoint.get("tokenizer_fingerprint"), self._fingerprint)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout alone draws from the global generator; a resumed run drops what the uninterrupted one would have.
        torch.manual_seed(stream_seed((self.seed, DROPOUT, int(batch.position[0]))))
        schedule, per_batch = self.model.schedule, False
        if self.schedules is not None:
            per_batch = self.schedules.per_batch
            number = int(batch.position[0]) if per_batch else self.trainer.global_step
            schedule = self.schedules.draw(self.seed, number)
        loss = self._loss(batch, TRAINING, schedule)
        for name, value in mean_losses(self.trainer, _loss_terms(loss), batch, names_differ=per_batch).items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch))
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for name, value in _loss_terms(self._loss(batch, VALIDATION, self.model.schedule)).items():
            self.log(f"val/{name}", value, prog_bar=name == "loss", sync_dist=True, batch_size=len(batch))

    def test_dataloader(self) -> DataLoader:
        return self.samples.loader(self.model.num_classes, self.global_rank, self.trainer.world_size)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def on_test_start(self) -> None:
        self._store.complete = self._ranks.first(lambda: self._store.begin(self._anew))

    def on_predict_start(self) -> None:
        self.on_test_start()

    def test_step(self, batch: tuple[int, Tensor], batch_idx: int) -> None:
        first, label_B = batch
        places = range(first, first + len(label_B))
        if not self._store.has(places):
            image_BCHW = self.generate_images(label_B, self.samples.seed, places)
            self._store.add(first, to_uint8(image_BCHW))

    def predict_step(self, batch: tuple[int, Tensor], batch_idx: int) -> None:
        self.test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.on_predict_epoch_end()
        if self.report is not None and self._store.complete:
            self.report.measure(SampleSet(self._store.path, self.model.num_classes), self, self._ranks)

    def on_predict_epoch_end(self) -> None:
        self._store.complete = self._ranks.first(lambda: self._store.pack(self.samples))

    @torch.no_grad()
    def generate_images(self, label_B: Tensor, seed: int, places: Iterable[int]) -> Tensor:
        """Images of labels, sampled as those at these places of a set with this seed, image_BCHW in [-1, 1].

        They are the same between two steps of training, which this leaves as it is.
        """
        schedule, generator = self.samples.schedule(self.model.schedule), self.model.generator
        training = generator.training
        generator.eval()
        with self.trainer.precision_plugin.forward_context():
            draws = SeededDraws.of_images(seed, places, self.device)
            image_BCHW = self.model.sample(label_B.to(self.device), draws, schedule)
        generator.train(training)
        return image_BCHW

    def latent(self, batch: Batch, draws: SeededDraws) -> Tensor:
        """latent_BChw that a batch is learned as."""
        return self.model.latent(batch.inputs, batch.kind == "latents", draws if self.sample_posterior else None)

    def _loss(self, batch: Batch, stream: int, schedule: ScaleSchedule) -> Loss:
        draws = SeededDraws.of_batch(self.seed, stream, batch.position, self.device)
        return self.model.loss(self.latent(batch, draws), batch.label, draws, schedule)


def _loss_terms(loss: Loss) -> dict[str, Tensor]:
    """What a generator logs: "loss" and the like over all scales, and "loss_scale_4" and the like of each."""
    terms = dict(loss.overall)
    for name, values_K in loss.per_scale.items():
        terms |= {f"{name}_scale_{size}": value for size, value in zip(loss.schedule.names, values_K, strict=True)}
    return terms
