"""AdamW with the field's parameter groups, and learning rates that are a function of the optimizer step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class RunLength:
    """What a recipe's numbers follow from; None is what is not known.

    Attributes:
        global_batch: Images of an optimizer step: devices x nodes x batch size x accumulated batches.
        steps_per_epoch: Images of an epoch over `global_batch`.
        total_steps: Optimizer steps of the whole run.
    """

    global_batch: int | None = None
    steps_per_epoch: float | None = None
    total_steps: int | None = None


ALTERNATIVES = (
    ("lr", "base_lr"),
    ("warmup_steps", "warmup_epochs", "warmup_ratio"),
    ("constant_steps", "constant_ratio"),
    ("final_lr", "final_lr_ratio"),
)
"""Settings for one thing, of which the first that is given holds. A command line that gives a later one takes those
before it back."""


@dataclass(kw_only=True)
class OptimizerSettings:
    """AdamW and its schedule, in optimizer steps or as papers state them; `resolve` computes the one from the other.

    Of several settings for one thing (`ALTERNATIVES`), the first that is given holds.
    """

    lr: float | None = None
    """Peak learning rate. None: `base_lr` x global batch / `base_batch`."""
    base_lr: float = 1e-4
    """Peak learning rate for a global batch of `base_batch` images."""
    base_batch: int = 256
    """Images that `base_lr` is stated for."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    weight_decay: float = 0.05
    """Decoupled decay, on weight matrices only: not on biases, norms or position tables."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up. None: `warmup_epochs`."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up. None: `warmup_ratio`."""
    warmup_ratio: float = 0.0
    """Share of `total_steps` that is linear warm-up."""
    warmup_start: float = 0.0
    """Share of the peak that the warm-up starts from."""
    constant_steps: int | None = None
    """Optimizer steps at the peak, between warm-up and decay. None: `constant_ratio`."""
    constant_ratio: float = 0.0
    """Share of the steps after the warm-up that stay at the peak."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows: the peak for ever, or a decay to `final_lr`."""
    total_steps: int | None = None
    """Optimizer step at which the decay ends. None: when the run does."""
    final_lr: float | None = None
    """Learning rate at the end of the decay. None: `final_lr_ratio`."""
    final_lr_ratio: float = 0.0
    """Share of the peak that the decay ends with."""
    final_weight_decay: float | None = None
    """Weight decay at `total_steps`, reached by half a cosine from `weight_decay` (VAR); None keeps it as it is."""

    def __post_init__(self) -> None:
        for name in ("lr", "base_lr", "base_batch", "total_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"optimizer.{name} must be positive, got {value}")
        for name in ("warmup_steps", "warmup_epochs", "constant_steps", "final_lr"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"optimizer.{name} must be >= 0, got {getattr(self, name)}")
        for name in ("warmup_ratio", "warmup_start", "constant_ratio", "final_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optimizer.{name} is a share, from 0 to 1, got {getattr(self, name)}")
        before = (self.warmup_steps or 0) + (self.constant_steps or 0)
        if self.schedule != "constant" and self.total_steps is not None and self.total_steps <= before:
            raise ValueError(
                f"a {self.schedule} schedule needs total_steps > warmup_steps + constant_steps ({before}), got "
                f"{self.total_steps}: leave optimizer.total_steps out, and the schedule ends with the run"
            )

    def resolve(self, run: RunLength) -> "OptimizerSettings":
        """The same with numbers for `lr`, `warmup_steps`, `constant_steps`, `total_steps` and `final_lr`.

        A schedule that follows a run too short for its warm-up never decays.

        Args:
            run: What they follow from.

        Raises:
            ValueError: They follow from something that is not known; names the remedy.
        """
        lr = self.lr
        if lr is None:
            lr = self.base_lr * _known(run.global_batch, "the learning rate", "lr") / self.base_batch
        total = run.total_steps if self.total_steps is None else self.total_steps
        if self.schedule != "constant" or self.final_weight_decay is not None or self.warmup_ratio:
            total = _known(total, f"the length of a {self.schedule} schedule", "total_steps")
        warmup = self.warmup_steps
        if warmup is None and self.warmup_epochs is not None:
            warmup = round(self.warmup_epochs * _known(run.steps_per_epoch, "the warm-up", "warmup_steps"))
        elif warmup is None:
            warmup = round(self.warmup_ratio * (total or 0))
        constant = self.constant_steps
        if constant is None:
            constant = round(self.constant_ratio * max(0, (total or 0) - warmup))
        final_lr = self.final_lr_ratio * lr if self.final_lr is None else self.final_lr
        within_warmup = self.total_steps is None and total is not None and total <= warmup + constant
        return replace(
            self,
            lr=lr,
            warmup_steps=warmup,
            constant_steps=constant,
            schedule="constant" if within_warmup else self.schedule,
            total_steps=total,
            final_lr=final_lr,
        )

    def describe(self, run: RunLength) -> str:
        """One line on what `resolve` has computed, and on where the schedule and the run end."""
        settings = self.resolve(run)
        from_base = f" = {self.base_lr:g} x {run.global_batch} / {self.base_batch}" if self.lr is None else ""
        parts = [f"learning rate {settings.lr:g}{from_base}"]
        changed = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        for names in ALTERNATIVES:
            given = [name for name in names if name in changed]
            parts += [f"{name} is not used, for {given[0]} is given" for name in given[1:]]
        if self.lr is not None and "base_batch" in changed:
            parts.append("base_batch is not used, for lr is given")
        if settings.warmup_steps:
            parts.append(f"{settings.warmup_steps} steps of warm-up")
        elif self.warmup_start:
            parts.append("warmup_start is not used, for there is no warm-up")
        if settings.constant_steps:
            parts.append(f"{settings.constant_steps} at the peak")
        end = run.total_steps
        if self.schedule == "constant":
            parts.append("then constant" + (f" to step {end}" if end else ""))
            unused = ["final_lr", "final_lr_ratio", "constant_steps", "constant_ratio"]
            if self.final_weight_decay is None and not self.warmup_ratio:
                unused.append("total_steps")
            if named := [name for name in unused if getattr(self, name)]:
                parts.append(f"{', '.join(named)} is not used: schedule is constant")
        else:
            decay = f"{self.schedule} decay (total_steps) to {settings.final_lr:g}"
            parts.append(f"{decay} at step {settings.total_steps}")
            if end is None:
                parts.append("the run has no last step")
            elif end != settings.total_steps:
                what = "before" if settings.total_steps < end else "after"
                parts.append(f"{what} the run, which ends at step {end}: optimizer.total_steps null follows it")
            elif settings.schedule == "constant":
                parts.append("where the run ends, before any decay")
            else:
                parts.append("where the run ends")
        return "optimizer: " + ", ".join(parts)

    def factor(self, step: int) -> float:
        """Learning rate at optimizer step `step` (from 0) over the peak. Of resolved settings."""
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
        """Weight decay of decayed parameters at optimizer step `step`. Of resolved settings."""
        if self.final_weight_decay is None:
            return self.weight_decay
        left = _half_cosine(min(1.0, step / self.total_steps))
        return self.final_weight_decay + (self.weight_decay - self.final_weight_decay) * left

    def build(self, modules: nn.Module | Iterable[nn.Module], run: RunLength | None = None) -> dict:
        """Optimizer and per-step scheduler for the trainable parameters of `modules`, as Lightning wants them.

        Args:
            modules: What is trained.
            run: What the settings follow from; only needed if they do, see `resolve`.
        """
        settings = self.resolve(run or RunLength())
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        decayed, plain = split_parameters(modules)
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
        # Fused AdamW can undo loss scaling itself, and Lightning then refuses to clip gradients. Let the scaler do it.
        optimizer._step_supports_amp_scaling = False
        scheduler = _Schedule(optimizer, settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Schedule(torch.optim.lr_scheduler.LambdaLR):
    """Learning rate and weight decay of every step.

    Args:
        optimizer: Its first group is decayed.
        settings: Functions of the step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> None:
        self._settings = settings
        super().__init__(optimizer, settings.factor)
        names = ("initial_lr", "betas", "eps", "weight_decay")
        self._typed = [{name: group[name] for name in names} for group in optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        self.optimizer.param_groups[0]["weight_decay"] = self._settings.weight_decay_at(self.last_epoch)

    def state_dict(self) -> dict:
        """The step alone: all else is a function of it."""
        return {name: value for name, value in super().state_dict().items() if name in _COUNTERS}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go to a step. The optimizer was loaded before and has the settings of then; those of now take their place."""
        self.last_epoch, self._step_count = (state_dict[name] for name in _COUNTERS)
        for group, typed in zip(self.optimizer.param_groups, self._typed, strict=True):
            group.update(typed, lr=typed["initial_lr"] * self._settings.factor(self.last_epoch))
        self.optimizer.param_groups[0]["weight_decay"] = self._settings.weight_decay_at(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


_COUNTERS = ("last_epoch", "_step_count")


def _known(value: float | None, what: str, name: str) -> float:
    if value is None:
        raise ValueError(f"{what} follows from the run, which does not have it: set optimizer.{name}")
    return value


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def split_parameters(modules: Iterable[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters with and without weight decay.

    Decayed: weights of rank >= 2 that are not marked `parameter.no_weight_decay = True` where they were made (position
    tables, learned scales). Class embeddings are decayed, as in the official code of all three families.
    """
    decayed, plain = [], []
    for module in (child for parent in modules for child in parent.modules()):
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            exempt = getattr(parameter, "no_weight_decay", False)
            (plain if exempt or parameter.ndim < 2 else decayed).append(parameter)
    return decayed, plain
