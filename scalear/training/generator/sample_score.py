"""How good a generator's samples are while it trains, and the checkpoint whose samples were the best.

Legend: B batch, C image channels, H W pixels.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from scalear.distributed.patient_ranks import PatientRanks
from scalear.evaluation.evaluate import choose_metrics, evaluate_samples, needs_of
from scalear.evaluation.image_set import Block, ImageSet
from scalear.evaluation.images import to_uint8
from scalear.evaluation.metric import NonFiniteScoreError, SampleMetric
from scalear.evaluation.protocol import short_count
from scalear.evaluation.side import Side
from scalear.training.checkpoints import BestCheckpoint, save_last_steps
from scalear.training.ema import averaged
from scalear.training.generator.module import GeneratorModule
from scalear.training.guarded_module import NonFiniteLossError
from scalear.training.performance import Performance


class GeneratedSet(ImageSet):
    """Images that are sampled whenever somebody looks at them; none is kept.

    Image i depends on its class and (seed, i) alone: they are the first images of `test`. Where that has fewer, its
    classes begin again.

    Args:
        module: What samples them, in its present state.
        count: How many.
    """

    name = "samples"

    def __init__(self, module: GeneratorModule, count: int) -> None:
        self._module = module
        model = module.model
        size = model.image_size(module.samples.schedule(model.schedule))
        self.image_shape = (*size, model.tokenizer.image_channels)
        self.labelled = model.num_classes > 0
        self.labels = np.resize(module.samples.labels(model.num_classes) if self.labelled else [-1], count)

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        return self.load().fingerprint()

    def blocks(self, size: int, rows: range | None = None) -> Iterator[Block]:
        for block in self._slices(size, rows):
            labels, places = self.labels[block], range(block.start, block.stop)
            # Without classes there is the null class alone, whose label is 0.
            label_B = torch.from_numpy(labels.clip(min=0))
            image_BCHW = self._module.generate_images(label_B, self._module.samples.seed, places)
            yield Block(to_uint8(image_BCHW).permute(0, 2, 3, 1).cpu().numpy(), labels)


class SampleScore(BestCheckpoint):
    """Measures samples every N steps, logs `val/fid_2k` and the like, and keeps the best in `checkpoints/best.ckpt`.

    The last step is measured too, at the end of training, unless a signal or an error ends it. Samples are made as in
    `test`: by the average of the weights, if the run keeps one, with the model's `sampling`, `guidance` and `samples`;
    and measured as `model.report` says. Logged are FID and all else that one pass of its network over the samples
    gives; the real images are looked at once, before training. All ranks share the work, and the numbers do not depend
    on how many there are. Training goes on as if nothing had been. Where the file of the network is missing, nothing is
    measured.

    It is a checkpoint callback so that Lightning runs it after all others: the average is that of the finished step.

    Args:
        every_n_steps: Optimizer steps between measurements.
        count: Samples; names the numbers.
    """

    def __init__(self, every_n_steps: int = 10_000, count: int = 2000) -> None:
        if every_n_steps < 1 or count < 2:
            raise ValueError(f"need every_n_steps >= 1 and count >= 2, got {every_n_steps} and {count}")
        self._count_name = short_count(count)
        super().__init__(f"val/fid_{self._count_name}")
        self.every_n_steps = every_n_steps
        self.count = count
        self._step = 0  # of the last measurement
        self._metrics: list[SampleMetric] = []
        self._reference: Side | None = None
        self._ranks: PatientRanks | None = None
        self._since, self._seconds = 0.0, 0.0  # when training began here, and what of it went into measuring

    def state_dict(self) -> dict:
        return super().state_dict() | {"step": self._step}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._step = state_dict["step"]

    def setup(self, trainer: Trainer, pl_module: GeneratorModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not isinstance(pl_module, GeneratorModule):
            raise ValueError(
                f"SampleScore is for generators, not for a {type(pl_module).__name__}: remove it from trainer.callbacks"
            )
        if stage != "fit":
            return
        report, samples = pl_module.report, GeneratedSet(pl_module, self.count)
        if report is None:
            raise ValueError(
                "SampleScore measures as model.report says, which is null: set it, or remove SampleScore from "
                "trainer.callbacks"
            )
        weights = report.extractor.weights
        if trainer.strategy.broadcast(report.extractor.seed is None and not Path(weights).is_file()):
            rank_zero_info(
                f"{self.monitor} is not measured, and no best.ckpt kept: there is no {weights}, the network of "
                "model.report: put it there and resume, to have both from then on"
            )
            return
        try:
            with isolate_rng():
                report.check(samples.image_shape[:2])
        except ValueError as error:
            raise ValueError(f"{error}; or train without SampleScore in trainer.callbacks") from error
        chosen = choose_metrics(report.metrics, report.extractor, report.reference, Side.of(samples))
        self._metrics = [metric for metric in chosen if not (metric.real.points or metric.real.labels)]
        self._ranks = PatientRanks.connect()

    def on_train_start(self, trainer: Trainer, pl_module: GeneratorModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._since, self._seconds = time.perf_counter(), 0.0
        if trainer.fast_dev_run or not self._metrics:
            return
        report, samples = pl_module.report, Side.of(GeneratedSet(pl_module, self.count))
        extractor, real, classes = report.extractor, report.reference, pl_module.model.num_classes
        seen = len(np.unique(samples.images.labels))
        lines = [f"{self.monitor} every {self.every_n_steps:,} steps, by {extractor.name} against {real.name}"]
        lines += [line for metric in self._metrics for line in metric.cautions(extractor, real, samples)]
        if seen < classes:
            lines.append(f"{self.count:,} samples are of {seen:,} of {classes:,} classes alone")
        rank_zero_info("\n" + "\n".join(lines))
        with isolate_rng():
            names = needs_of(self._metrics, "real").statistics
            self._reference = real.remembered(extractor, names, pl_module.device, self._ranks)
        self._seconds = time.perf_counter() - self._since
        self._measure_if_due(trainer, pl_module)  # a run that was killed just before it could, unless it had ended

    def on_train_batch_end(self, trainer: Trainer, pl_module: GeneratorModule, outputs, batch, batch_idx) -> None:
        self._measure_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: GeneratorModule) -> None:
        save_last_steps(trainer)  # before what takes long
        self._measure_if_due(trainer, pl_module, at_end=True)

    def on_validation_end(self, trainer: Trainer, pl_module: GeneratorModule) -> None:
        """Nothing: what is kept does not follow from validation."""

    def _measure_if_due(self, trainer: Trainer, module: GeneratorModule, at_end: bool = False) -> None:
        step, began = trainer.global_step, time.perf_counter()
        if self._reference is None or step == self._step or (step % self.every_n_steps and not at_end):
            return  # the same step comes again while gradients accumulate
        self._step = step
        how = {"batch_size": module.samples.batch_size, "device": module.device, "ranks": self._ranks}
        with isolate_rng(), averaged(trainer, module):
            samples, extractor = Side.of(GeneratedSet(module, self.count)), module.report.extractor
            try:
                scores = evaluate_samples(samples, self._reference, extractor, self._metrics, **how)
            except NonFiniteScoreError as error:
                raise NonFiniteLossError(f"at step {step} {error}") from error
        values = {f"val/{name}_{self._count_name}": value for name, value in scores.items()}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        for callback in trainer.callbacks:
            if isinstance(callback, Performance):
                callback.leave_out()
        now = time.perf_counter()
        self._seconds += now - began
        cost = {"seconds": now - began, "share": self._seconds / (now - self._since)}
        for logger in trainer.loggers:
            logger.log_metrics(values | {f"perf/fid_{name}": cost[name] for name in cost}, step=step)
        rank_zero_info(
            f"\n{self.monitor} {values[self.monitor]:.4g} at step {step:,} (the best: {self.best_model_score:.4g}), "
            f"measured in {cost['seconds']:.1f} s; {cost['share']:.1%} of the time since training began went into this"
        )
