"""Classifier-free guidance, `uncond + w (cond - uncond)` with w = 1 off, and how w varies over scales and time."""

import math
from dataclasses import dataclass
from typing import Literal

from scalear.idle_settings import refuse_idle
from scalear.scales import ScaleSchedule

_FLEXVAR_STEPS = 9


@dataclass(frozen=True)
class Guidance:
    """Guidance weight as a function of the scale and of flow time.

    The defaults are FlowAR's: a linear ramp over scales (the coarsest scale is never guided, the finest gets
    the full weight), and no guidance close to pure noise (official code; the paper does not mention either).
    """

    weight: float = 1.0
    """Full weight w; 1.0 is off."""
    ramp: Literal["linear", "constant", "flexvar"] = "linear"
    """`linear` (FlowAR, VAR): 1 + (w - 1) k / (K - 1); `constant`: w at every scale; `flexvar`: the official FlexVAR
    code's, 1 + (w - 1) k / min(K - 1, 9) up to `flexvar_side`, beyond w with more than ten scales, and w above it."""
    start_time: float | None = None
    """Flow steps at t < start_time (close to noise) are not guided. None: 0.1, FlowAR's "guidance 0.9". Codes are
    sampled without a flow, and have no such time."""
    end_time: float | None = None
    """Flow steps at t >= end_time (close to data) are not guided (the limited interval of Kynkaanniemi et al., 2024).
    None: guided to the end. Codes have no such time either."""
    flexvar_side: int = 16
    """Side above which `ramp: flexvar` is constant, the code's `max_pn`."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"guidance weight must be a number >= 0, got {self.weight}; 1.0 is off")
        if not 0 <= self.jump <= 1:
            raise ValueError(f"guidance start_time must be in [0, 1], got {self.start_time}; 0 guides every step")
        if self.end_time is not None and not self.jump < self.end_time <= 1:
            raise ValueError(
                f"guidance end_time must be above the start time {self.jump} and at most 1, got {self.end_time}; null "
                "guides to the end"
            )
        if self.ramp != "flexvar":
            refuse_idle(Guidance, f"guidance.ramp is {self.ramp}, not flexvar", flexvar_side=self.flexvar_side)

    @property
    def active(self) -> bool:
        """Whether any scale needs the unconditional branch."""
        return self.weight != 1.0

    def at_scale(self, k: int, schedule: ScaleSchedule) -> float:
        """Weight at scale k of a schedule."""
        last = schedule.num_scales - 1
        if self.ramp == "constant" or last == 0:
            return self.weight
        if self.ramp == "flexvar":
            if max(schedule.sizes[k]) > self.flexvar_side:
                return self.weight
            last = min(last, _FLEXVAR_STEPS)
        return 1.0 + (self.weight - 1.0) * k / last

    @property
    def jump(self) -> float:
        """Flow time at which guidance sets in."""
        return 0.1 if self.start_time is None else self.start_time

    @property
    def end(self) -> float:
        """Flow time at which guidance ends; infinite if it never does."""
        return math.inf if self.end_time in (None, 1) else self.end_time

    def at_time(self, t: float) -> bool:
        """Whether a flow step at time t is guided; one at `jump` is, and one at `end` is not, up to rounding of t."""
        return self.jump - 1e-9 <= t < self.end - 1e-9
