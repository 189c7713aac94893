"""Who says how many batches make an optimizer step: the Trainer, or a callback that changes their number in the run."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def accumulation_scheduler(trainer: Trainer) -> GradientAccumulationScheduler | None:
    """The callback, if a run has it; then its batches, and all that follows from them, are not known before."""
    callbacks = (callback for callback in trainer.callbacks if isinstance(callback, GradientAccumulationScheduler))
    return next(callbacks, None)


def check_accumulation(trainer: Trainer) -> None:
    """Refuse a callback beside which the Trainer has a number, too, or that changes nothing.

    Args:
        trainer: Before its run.

    Raises:
        ValueError: Says what to leave out.
    """
    if (scheduler := accumulation_scheduler(trainer)) is None:
        return
    name, numbers = type(scheduler).__name__, set(scheduler.scheduling.values())
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, and {name} says how many, too: "
            "leave out one of them"
        )
    if len(numbers) == 1:
        raise ValueError(f"{name} changes nothing: set trainer.accumulate_grad_batches to {numbers.pop()} instead")
