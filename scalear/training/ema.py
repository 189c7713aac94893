"""Exponential moving average of the weights: Lightning's callback, with a warm-up and without its traps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor


class EMA(WeightAveraging):
    """Averages the weights after every optimizer step; validation and everything after training uses the average.

    Checkpoints hold the average under `state_dict` and the raw weights under `current_model_state`, so test,
    predict and export read the average from any checkpoint, and a resumed fit continues with both.

    The average follows the weights quickly at first: the decay at update n is min(decay, (1 + n) / (10 + n)),
    so there is no start step before which validation would see untrained weights. Frozen parts have no average.

    Args:
        decay: Decay once warmed up; the paper-size recipes use 0.9999.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in [0, 1), got {decay}")
        self.decay = decay
        self._swapped = False  # the module holds the average, the copy the raw weights
        super().__init__(use_buffers=False, multi_avg_fn=self._update)

    @torch.no_grad()
    def _update(self, averages: list[Tensor], currents: list[Tensor], num_averaged: Tensor | int) -> None:
        num_averaged = int(num_averaged)
        decay = min(self.decay, (1 + num_averaged) / (10 + num_averaged))
        torch._foreach_lerp_(averages, currents, 1 - decay)

    def setup(self, trainer, pl_module, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._swapped = False

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        if self._has_average:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if self._has_average:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer, pl_module) -> None:
        # A run that goes on from its last step has no training whose end could swap.
        if self._has_average and not self._swapped:
            self._swap_models(pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped and self._average_model is not None:
            average, raw = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, raw

    def on_load_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        # Outside fit the checkpoint's state_dict is the average already; there is nothing to restore or warn of.
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @contextmanager
    def in_use(self, pl_module: LightningModule) -> Iterator[None]:
        """Inside, the module has the average, if there is one yet."""
        swapped = self._has_average and not self._swapped
        if swapped:
            self._swap_models(pl_module)
        try:
            yield
        finally:
            if swapped:
                self._swap_models(pl_module)

    @property
    def _has_average(self) -> bool:
        # Lightning's sanity check validates before the first update, when the copy is of unloaded weights.
        return self._average_model is not None and bool(self._average_model.n_averaged > 0)

    @torch.no_grad()
    def _swap_models(self, pl_module: LightningModule) -> None:
        for average, current in zip(self._average_model.module.parameters(), pl_module.parameters(), strict=True):
            if current.requires_grad:
                kept = average.clone()
                average.copy_(current)
                current.copy_(kept)
        self._swapped = not self._swapped

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        # After training. The last checkpoint may be written later still, and needs the raw weights.
        self._swap_models(pl_module)


def averaged(trainer: Trainer, pl_module: LightningModule) -> AbstractContextManager[None]:
    """Inside, a module has the average of its weights, as in validation, if its run keeps one."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA)]
    return averages[0].in_use(pl_module) if averages else nullcontext()


def averaged_state(trainer: Trainer, raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average as a state dict, where the run keeps one; else the raw weights, which are given."""
    checkpoint: dict[str, Any] = {"state_dict": raw}
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            callback.on_save_checkpoint(trainer, trainer.lightning_module, checkpoint)
    return checkpoint["state_dict"]


def leave_average(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Let training go on from raw weights, of a checkpoint that has an average, where the run keeps none any more."""
    keeps = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
    if "current_model_state" in checkpoint and not keeps:
        checkpoint["state_dict"] = checkpoint["current_model_state"]
        rank_zero_info("trainer.callbacks has no EMA: the average of the weights in the checkpoint is not continued")
