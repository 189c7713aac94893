"""How long a step of a training takes on this machine: a few of them, which leave nothing behind."""

import time

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from scalear.hardware.precision import fastest


def seconds_per_step(
    module: LightningModule, data: LightningDataModule, device: torch.device, clip: float | None, seconds: float = 5.0
) -> float:
    """Train for a few seconds, with loading, in the precision that is fastest here.

    Args:
        module: What is trained; it is spoilt.
        data: What it is trained on.
        device: Where.
        clip: `trainer.gradient_clip_val`.
        seconds: Length of the trial; one step at least is timed, after three to warm up.

    Returns:
        The median of the steps that were timed.
    """
    clock = _StepClock(seconds)
    with isolate_rng():
        trainer = Trainer(
            accelerator=device.type,
            devices=1,
            precision=fastest(device),
            gradient_clip_val=clip,
            callbacks=[clock],
            limit_val_batches=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            fast_dev_run=_MOST_STEPS,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit_loop.max_epochs = -1  # of which a fast_dev_run has but one, and small datasets have few steps
        trainer.fit(module, data)
    return torch.tensor(clock.seconds[_WARM_UP:]).median().item()


_MOST_STEPS = 1000
_WARM_UP = 3  # steps are slower: caches fill, kernels are chosen


class _StepClock(Callback):
    """Ends a training after some seconds of timed steps."""

    def __init__(self, budget: float) -> None:
        self.seconds: list[float] = []
        self._budget = budget
        self._last: float | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now
        if len(self.seconds) > _WARM_UP and sum(self.seconds[_WARM_UP:]) >= self._budget:
            trainer.should_stop = True
