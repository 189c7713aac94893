"""Losses of a step over all ranks: what is logged, and what ends a run before it reaches the weights."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from scalear.data.batch import Batch
from scalear.models.generator import Loss


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


def loss_terms(loss: Loss) -> dict[str, Tensor]:
    """What a generator logs: "loss" and the like over all scales, and "loss_scale_4" and the like of each."""
    terms = dict(loss.overall)
    for name, values_K in loss.per_scale.items():
        terms |= {f"{name}_scale_{size}": value for size, value in zip(loss.schedule.names, values_K, strict=True)}
    return terms
