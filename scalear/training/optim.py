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
    """Optimizer steps of linear warm-up."""
    warmup_start: float = 0.0
    """Share of the peak that the warm-up starts from."""
    constant_steps: int = 0
    """Optimizer steps at the peak, between warm-up and decay."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows: the peak for ever, or a decay to `final_lr`."""
    total_steps: int | None = None
    """Optimizer step at which the decay ends; needed by `cosine` and `linear`."""
    final_lr: float = 0.0
    """Learning rate at the end of the decay."""
    final_weight_decay: float | None = None
    """Weight decay at `total_steps`, reached by half a cosine from `weight_decay` (VAR); None keeps it as it is."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.warmup_steps < 0 or self.constant_steps < 0:
            raise ValueError(
                f"lr must be positive, warmup_steps and constant_steps >= 0, got {self.lr}, {self.warmup_steps}, "
                f"{self.constant_steps}"
            )
        before = self.warmup_steps + self.constant_steps
        if self.schedule != "constant" and (self.total_steps is None or self.total_steps <= before):
            raise ValueError(
                f"a {self.schedule} schedule needs total_steps > warmup_steps + constant_steps ({before}), got "
                f"{self.total_steps}: set optimizer.total_steps to trainer.max_steps"
            )
        if self.final_weight_decay is not None and self.total_steps is None:
            raise ValueError("final_weight_decay needs total_steps: set it to trainer.max_steps")

    def factor(self, step: int) -> float:
        """Learning rate at optimizer step `step` (from 0) over the peak."""
        if step < self.warmup_steps:
            return self.warmup_start + (1 - self.warmup_start) * (step + 1) / self.warmup_steps
        decay_start = self.warmup_steps + self.constant_steps
        if self.schedule == "constant" or step < decay_start:
            return 1.0
        progress = min(1.0, (step - decay_start) / (self.total_steps - decay_start))
        left = 1 - progress if self.schedule == "linear" else _half_cosine(progress)
        floor = self.final_lr / self.lr
        return floor + (1 - floor) * left

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of decayed parameters at optimizer step `step`."""
        if self.final_weight_decay is None:
            return self.weight_decay
        left = _half_cosine(min(1.0, step / self.total_steps))
        return self.final_weight_decay + (self.weight_decay - self.final_weight_decay) * left

    def build(self, modules: nn.Module | Iterable[nn.Module]) -> dict:
        """Optimizer and per-step scheduler for the trainable parameters of `modules`, as Lightning wants them."""
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        decayed, plain = split_parameters(modules)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)
        # Fused AdamW can undo loss scaling itself, and Lightning then refuses to clip gradients. Let the scaler do it.
        optimizer._step_supports_amp_scaling = False
        scheduler = _Schedule(optimizer, self)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Schedule(torch.optim.lr_scheduler.LambdaLR):
    """Learning rate and weight decay of every step.

    Args:
        optimizer: Its first group is decayed.
        settings: Functions of the step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> None:
        self._weight_decay_at = settings.weight_decay_at
        super().__init__(optimizer, settings.factor)

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        self.optimizer.param_groups[0]["weight_decay"] = self._weight_decay_at(self.last_epoch)

    def state_dict(self) -> dict:
        return {name: value for name, value in super().state_dict().items() if name != "_weight_decay_at"}


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


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
