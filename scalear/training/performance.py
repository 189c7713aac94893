"""How fast a run is, and how long it will take."""

import time

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from scalear.training.loggers import logs_now


class Performance(Callback):
    """Logs `perf/images_per_second` over all ranks."""

    def __init__(self) -> None:
        self._images = 0
        self._since = time.perf_counter()
        self._step = 0

    def on_train_start(self, trainer, pl_module) -> None:
        self.leave_out()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._images += len(batch) * trainer.world_size
        if trainer.global_step != self._step and logs_now(trainer, trainer.global_step):
            self._step = trainer.global_step
            now = time.perf_counter()
            pl_module.log("perf/images_per_second", self._images / (now - self._since))
            self._images, self._since = 0, now

    def on_validation_end(self, trainer, pl_module) -> None:
        self.leave_out()

    def leave_out(self) -> None:
        """What has gone on since the last step was no training."""
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
        self._start = 0
        self._since: tuple[int, float] | None = None
        self._told = False

    def on_train_start(self, trainer, pl_module) -> None:
        self._start = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step, now = trainer.global_step, time.perf_counter()
        if self._since is None and step >= self._start + _FIRST_STEPS:
            self._since = step, now
        if self._told or self._since is None or step == self._since[0] or now - self._since[1] < _FORECAST_AFTER:
            return
        self._told = True
        seconds_per_step = (now - self._since[1]) / (step - self._since[0])
        steps = trainer.max_steps - self._start
        training = seconds_per_step * steps
        rank_zero_info(
            f"\n{seconds_per_step:.2f} s a step: about {minutes(training)} for these {steps:,} steps, "
            f"{minutes(training + self.seconds_around)} for {self.whole}"
        )


_FIRST_STEPS = 3  # are slower: caches fill, kernels are chosen
_FORECAST_AFTER = 5.0  # seconds


def minutes(seconds: float) -> str:
    """A length of time as people say it."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
