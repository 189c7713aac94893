"""Flow matching without networks: the probability path, time grids and ODE solvers.

Convention (FlowAR eq. 7 and 8): t in [0, 1], x_0 noise, x_1 data, x_t = t x_1 + (1 - t) x_0, velocity
x_1 - x_0. Times are float64 throughout, so that 1 - t, which official checkpoints are conditioned on, is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


@dataclass
class PathSample:
    """A point of the path and the velocity there.

    Attributes:
        x_t: The interpolant, shaped as the data.
        velocity: d x_t / dt, the regression target.
    """

    x_t: Tensor
    velocity: Tensor


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> PathSample:
    """The straight path from noise x_0 to data x_1 at times t, which broadcast against them."""
    t = t.to(x_1.dtype)
    return PathSample(x_t=t * x_1 + (1 - t) * x_0, velocity=x_1 - x_0)


def logit_normal(uniform: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) to the sigmoid of standard normal ones: middle times more often than both ends.

    Near noise and near data the velocity is easy to guess; training spends its samples where it is not (Esser et al.,
    2024, section 3.1). In float64; 0 stays 0.
    """
    return torch.sigmoid(torch.special.ndtri(uniform.double()))


def uniform_times(num_steps: int) -> list[float]:
    """num_steps + 1 equally spaced times from 0 to 1."""
    return [float(t) for t in torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)]


def flowar_times(num_steps: int) -> list[float]:
    """The official FlowAR grid for the number that its command line takes.

    Uniform for 50. Otherwise noise levels 1 to 0.3 in num_steps // 2 points, then 0.25 to 0 in one more than
    that: 25 gives 24 steps.
    """
    if num_steps == 50:
        return uniform_times(50)
    half = num_steps // 2
    noisy = torch.linspace(1, 0.3, half, dtype=torch.float64)
    clean = torch.linspace(0.25, 0, half + 1, dtype=torch.float64)
    return [1.0 - float(noise_level) for noise_level in torch.cat([noisy, clean])]


def euler(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """First order, one evaluation a step."""
    for t, t_next in zip(times, times[1:], strict=False):
        x = x + (t_next - t) * velocity(x, t)
    return x


def midpoint(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """Second order, two evaluations a step, the second half way."""
    for t, t_next in zip(times, times[1:], strict=False):
        half = 0.5 * (t_next - t)
        x = x + 2 * half * velocity(x + half * velocity(x, t), t + half)
    return x


def heun(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """Second order, two evaluations a step, the second at its end."""
    for t, t_next in zip(times, times[1:], strict=False):
        step = t_next - t
        slope = velocity(x, t)
        x = x + 0.5 * step * (slope + velocity(x + step * slope, t_next))
    return x


_METHODS = {"euler": euler, "midpoint": midpoint, "heun": heun}
_GRIDS = {"uniform": uniform_times, "flowar": flowar_times}


@dataclass(frozen=True)
class FlowSolver:
    """How a scale's noise is carried to data."""

    method: Literal["euler", "midpoint", "heun"] = "euler"
    """ODE solver; midpoint and heun evaluate the network twice a step."""
    num_steps: int | list[int] = 25
    """Steps, one number for all scales or one per scale."""
    grid: Literal["uniform", "flowar"] = "uniform"
    """Time grid; `flowar` is the official two-piece one, whose 25 means 24 steps."""

    def __post_init__(self) -> None:
        steps = [self.num_steps] if isinstance(self.num_steps, int) else self.num_steps
        smallest = 2 if self.grid == "flowar" else 1
        if not steps or min(steps) < smallest:
            raise ValueError(f"num_steps must be at least {smallest} on the {self.grid} grid, got {self.num_steps}")

    def times(self, k: int, num_scales: int) -> list[float]:
        """Increasing times from 0 to 1 for scale k of K.

        Raises:
            ValueError: A list of step counts has not one entry per scale.
        """
        if isinstance(self.num_steps, int):
            return _GRIDS[self.grid](self.num_steps)
        if len(self.num_steps) != num_scales:
            raise ValueError(f"num_steps has {len(self.num_steps)} entries for {num_scales} scales: {self.num_steps}")
        return _GRIDS[self.grid](self.num_steps[k])

    def solve(self, velocity: Velocity, x_0: Tensor, times: list[float]) -> Tensor:
        """x_0 at times[0] to x at times[-1]; the state is float64, as in the official code."""
        return _METHODS[self.method](velocity, x_0.double(), times).to(x_0.dtype)
