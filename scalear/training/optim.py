"""AdamW with the field's parameter groups, and learning rates that are a function of the optimizer step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(kw_only=True)
class OptimizerSettings:
    """AdamW and its schedule. The length of the run is stated here, never guessed from the loader."""

    lr: float = 1e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    weight_decay: float = 0.05
    """Decoupled decay, on weight matrices only: not on biases, norms, embeddings or position tables."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up."""
    total_steps: int | None = None
    """Optimizer step at which the cosine reaches its end; needed by `cosine`."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0:
            raise ValueError(f"lr must be positive and warmup_steps >= 0, got {self.lr}, {self.warmup_steps}")
        if self.schedule == "cosine" and (self.total_steps is None or self.total_steps <= self.warmup_steps):
            raise ValueError(
                f"a cosine schedule needs total_steps > warmup_steps ({self.warmup_steps}), got "
                f"{self.total_steps}: set optimizer.total_steps to trainer.max_steps"
            )

    def factor(self, step: int) -> float:
        """Learning rate at optimizer step `step` (from 0) over the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        floor = self.final_lr / self.lr
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def build(self, modules: nn.Module | Iterable[nn.Module]) -> dict:
        """Optimizer and per-step scheduler for the trainable parameters of `modules`, as Lightning wants them."""
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        decayed, plain = split_parameters(modules)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)
        # Fused AdamW can undo loss scaling itself, and Lightning then refuses to clip gradients. Let the scaler do it.
        optimizer._step_supports_amp_scaling = False
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def split_parameters(modules: Iterable[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters with and without weight decay.

    Decayed: weights of rank >= 2 that are neither an `nn.Embedding` nor marked `parameter.no_weight_decay = True`
    where they were made (position tables, learned scales).
    """
    decayed, plain = [], []
    for module in (child for parent in modules for child in parent.modules()):
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            exempt = isinstance(module, nn.Embedding) or getattr(parameter, "no_weight_decay", False)
            (plain if exempt or parameter.ndim < 2 else decayed).append(parameter)
    return decayed, plain
