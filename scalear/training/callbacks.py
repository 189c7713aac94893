"""Callbacks of every run: speed, sample grids, and Ctrl-C that loses nothing."""

import signal
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from scalear.evaluation.images import make_grid, to_uint8
from scalear.training.losses import NonFiniteLossError
from scalear.training.pictures import pyramid_images, sampled_images


class Performance(Callback):
    """Logs `perf/images_per_second` over all ranks and the parameter count."""

    def __init__(self) -> None:
        self._images = 0
        self._since = time.perf_counter()
        self._step = 0

    def on_fit_start(self, trainer, pl_module) -> None:
        trainable = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        for logger in trainer.loggers:
            logger.log_metrics({"perf/trainable_parameters": float(trainable)}, step=trainer.global_step)

    def on_train_start(self, trainer, pl_module) -> None:
        self._images, self._since = 0, time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._images += len(batch) * trainer.world_size
        if trainer.global_step != self._step and trainer.global_step % trainer.log_every_n_steps == 0:
            self._step = trainer.global_step
            now = time.perf_counter()
            pl_module.log("perf/images_per_second", self._images / (now - self._since))
            self._images, self._since = 0, now

    def on_validation_end(self, trainer, pl_module) -> None:
        self._images, self._since = 0, time.perf_counter()


class Forecast(Callback):
    """Says, a few seconds after training begins, how long it and what it is a part of will take on this machine.

    Args:
        seconds_around: What the whole takes beside this training.
        whole: Its name.
    """

    def __init__(self, seconds_around: float = 0.0, whole: str = "the run") -> None:
        self.seconds_around = seconds_around
        self.whole = whole
        self._since: tuple[int, float] | None = None
        self._told = False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step, now = trainer.global_step, time.perf_counter()
        if self._since is None and step >= _FIRST_STEPS:
            self._since = step, now
        if self._told or self._since is None or step == self._since[0] or now - self._since[1] < _FORECAST_AFTER:
            return
        self._told = True
        seconds_per_step = (now - self._since[1]) / (step - self._since[0])
        training = seconds_per_step * trainer.max_steps
        rank_zero_info(
            f"\n{seconds_per_step:.2f} s a step: about {minutes(training)} for these {trainer.max_steps:,} steps, "
            f"{minutes(training + self.seconds_around)} for {self.whole}"
        )


_FIRST_STEPS = 3  # are slower: caches fill, kernels are chosen
_FORECAST_AFTER = 5.0  # seconds


def minutes(seconds: float) -> str:
    """A length of time as people say it."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class SampleGrid(Callback):
    """Writes a grid of generated images with fixed seeds to TensorBoard, and once the pyramid of real ones.

    Args:
        every_n_steps: Optimizer steps between grids.
        num_per_class: Images of each class, one class per column.
        max_classes: Columns.
    """

    def __init__(self, every_n_steps: int = 500, num_per_class: int = 4, max_classes: int = 10) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.num_per_class = num_per_class
        self.max_classes = max_classes
        self._step = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not trainer.is_global_zero or trainer.logger is None or trainer.global_step == self._step:
            return  # the same step again while gradients accumulate
        self._step = trainer.global_step
        if trainer.global_step == 1:
            self._write(trainer, "pyramid/real", pyramid_images(pl_module, batch, self.max_classes), self.max_classes)
        if trainer.global_step % self.every_n_steps == 0:
            # Without classes there is the null class alone, whose label is 0.
            columns = min(self.max_classes, max(1, pl_module.generator.num_classes))
            labels = torch.arange(columns).repeat(self.num_per_class)
            self._write(trainer, "samples/fixed_seeds", sampled_images(pl_module, labels), columns)

    @staticmethod
    def _write(trainer, tag: str, images: torch.Tensor, columns: int) -> None:
        grid = make_grid(to_uint8(images), columns, scale=2)
        trainer.logger.experiment.add_image(tag, grid, trainer.global_step, dataformats="HWC")


_PATIENCE = 10.0  # seconds in which a repeated signal is still the first


class SaveOnInterrupt(Checkpoint):
    """Ctrl-C (SIGINT) and SIGTERM finish the step at hand, save a checkpoint, and end the run with exit code 130.

    A loss or gradient that is not finite leaves a checkpoint of the last good step.

    It is a `Checkpoint` so that Lightning runs it after all other callbacks: the loader's position and the
    average are those of the finished step.
    """

    def __init__(self) -> None:
        self._stop_since: float | None = None
        self._previous: dict[int, object] = {}

    def on_train_start(self, trainer, pl_module) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame) -> None:
        # Launchers repeat the signal at once; a user who repeats it later does not want to wait for the step.
        if self._stop_since is None:
            self._stop_since = time.monotonic()
        elif time.monotonic() - self._stop_since > _PATIENCE:
            self._restore()
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self._stop_since is not None, all=False)
        if stop:
            self._save(trainer, "interrupted.ckpt")
            raise SystemExit(130)  # not KeyboardInterrupt, at which Lightning would kill the other ranks

    def on_train_end(self, trainer, pl_module) -> None:
        self._restore()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._restore()
        if isinstance(exception, NonFiniteLossError):
            self._save(trainer, "last_good.ckpt")

    def _save(self, trainer, name: str) -> None:
        checkpoint = checkpoint_folder(trainer) / name
        trainer.save_checkpoint(checkpoint)
        rank_zero_info(f"\nStopped after step {trainer.global_step}. Resume with: --ckpt_path {checkpoint}")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def checkpoint_folder(trainer) -> Path:
    """Where this run keeps its checkpoints."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return Path(callback.dirpath)
    return Path(trainer.default_root_dir) / "checkpoints"
