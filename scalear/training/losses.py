"""Losses of a step over all ranks: what is logged, and what ends a run before it reaches the weights."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from scalear.data.batch import Batch


class NonFiniteLossError(ValueError):
    """A loss or its gradient is NaN or infinite. All ranks raise it at once, so that the last step can be saved."""


def mean_losses(trainer: Trainer, terms: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Mean of every term over the ranks, detached.

    Args:
        trainer: Knows the ranks.
        terms: Scalars by name; the same names on all ranks.
        batch: This rank's samples, for the message.

    Raises:
        NonFiniteLossError: A term is not finite on some rank.
    """
    values = torch.stack([value.detach().float() for value in terms.values()])
    values = trainer.strategy.reduce(values, reduce_op="mean")
    means = dict(zip(terms, values, strict=True))
    if not values.isfinite().all():
        bad = {name: value.item() for name, value in means.items() if not value.isfinite()}
        raise NonFiniteLossError(
            f"the loss is not finite at step {trainer.global_step}: {bad}; batch keys: {batch.keys}. "
            "Lower the learning rate, or look at these samples"
        )
    return means
