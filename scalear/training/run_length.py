"""How long a run is, in the units of papers and in optimizer steps."""

import math

from lightning.pytorch import Trainer

from scalear.data.datamodule import ShardDataModule
from scalear.training.optim import RunLength


def run_length(trainer: Trainer) -> RunLength:
    """What learning rates and schedules may follow from. Of a trainer whose `fit` has begun."""
    data = trainer.datamodule
    if not isinstance(data, ShardDataModule):
        return RunLength(total_steps=_finite(trainer.estimated_stepping_batches))
    global_batch = data.samples_per_step
    steps_per_epoch = None if global_batch is None else data.num_train_samples / global_batch
    return RunLength(global_batch, steps_per_epoch, _total_steps(trainer, data))


def _total_steps(trainer: Trainer, data: ShardDataModule) -> int | None:
    if data.accumulated is None and trainer.max_epochs != -1:
        return None  # epochs have different numbers of steps
    limit = trainer.limit_train_batches
    if isinstance(limit, int) or limit < 1:  # epochs are all equally long then, which Lightning takes for granted
        return _finite(trainer.estimated_stepping_batches)
    ends = [] if trainer.max_steps == -1 else [trainer.max_steps]
    if trainer.max_epochs != -1:
        ends.append(data.steps_of_epochs(trainer.max_epochs))
    return min(ends, default=None)


def _finite(steps: int | float) -> int | None:
    return int(steps) if math.isfinite(steps) else None
