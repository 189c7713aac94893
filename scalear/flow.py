"""Flow matching without networks: the probability path, time grids and ODE solvers.

Convention (FlowAR eq. 7 and 8): t in [0, 1], x_0 noise, x_1 data, x_t = t x_1 + (1 - t) x_0, velocity
x_1 - x_0. Times of solvers are Python numbers: the noise level 1 - t, which official checkpoints are conditioned on, is
exact until it is rounded for the network.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from scalear.guidance import Guidance
from scalear.hardware.float64 import in_float64, widest_float
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule

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
    t = t.to(x_1)
    return PathSample(x_t=t * x_1 + (1 - t) * x_0, velocity=x_1 - x_0)


def logit_normal(uniform: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) to the sigmoid of standard normal ones: middle times more often than both ends.

    Near noise and near data the velocity is easy to guess; training spends its samples where it is not (Esser et al.,
    2024, section 3.1). In float64, on the CPU where the device has none; 0 stays 0.
    """
    return torch.sigmoid(torch.special.ndtri(in_float64(uniform)))


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


def late_times(num_steps: int, jump: float = 0.0, end: float = math.inf) -> list[float]:
    """Steps that shrink fourfold on the way to data, t = 2u / (1 + u) for uniform u.

    Few steps should be short where the velocity turns most, which is close to data. Where guidance sets in at a time
    `jump`, the first step ends there and the others share what is left. Where it ends before data, the time nearest to
    `end` becomes that one.
    """
    times, inner = [2 * u / (1 + u) for u in uniform_times(num_steps)], range(1, num_steps)
    if num_steps > 1 and 0 < jump < 1:
        times, inner = [0.0, *(jump + (1 - jump) * t for t in late_times(num_steps - 1))], range(2, num_steps)
    if end < 1 and inner:
        times[min(inner, key=lambda index: abs(times[index] - end))] = end
    return times


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


def adams_bashforth(velocity: Velocity, x: Tensor, times: list[float], order: int) -> Tensor:
    """One evaluation a step: integrates the polynomial through the last `order` velocities, at their actual times.

    The first steps have fewer velocities, and so a lower order.
    """
    seen: list[tuple[float, Tensor]] = []
    for t, t_next in zip(times, times[1:], strict=False):
        seen = [(t, velocity(x, t)), *seen][:order]
        weights = _polynomial_weights([earlier for earlier, _ in seen], t, t_next)
        x = x + sum(weight * slope for weight, (_, slope) in zip(weights, seen, strict=True))
    return x


def _polynomial_weights(nodes: list[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange polynomials of `nodes`."""
    # Exact for 1, u, u^2 ... of u = (t - start) / (end - start), whose integrals are 1, 1/2, 1/3 ...
    powers = torch.arange(len(nodes), dtype=torch.float64)
    u = (torch.tensor(nodes, dtype=torch.float64) - start) / (end - start)
    return ((end - start) * torch.linalg.solve(u ** powers[:, None], 1 / (powers + 1))).tolist()


_METHODS = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "ab2": partial(adams_bashforth, order=2),
    "ab3": partial(adams_bashforth, order=3),
}
_JUST_BEFORE = 1e-6  # more than guidance allows for the rounding of times, far less than a step
_GRIDS = {"uniform": uniform_times, "flowar": flowar_times}


@dataclass(frozen=True)
class FlowSolver(Sampling):
    """How a scale's noise is carried to data; docs/performance.md compares solvers."""

    searched = {"num_steps": [4, 25]}
    guided_in_time = True

    method: Literal["euler", "midpoint", "heun", "ab2", "ab3"] = "euler"
    """ODE solver; midpoint and heun evaluate the network twice a step, Adams-Bashforth of order 2 and 3 once."""
    num_steps: int | list[int] = 25
    """Steps, one number for all scales or one per scale."""
    grid: Literal["uniform", "flowar", "late"] = "uniform"
    """Time grid; `flowar` is the official two-piece one, whose 25 means 24 steps; `late` has steps that shrink
    fourfold towards data, of which one ends where guidance sets in, and one where it ends."""

    def __post_init__(self) -> None:
        steps = [self.num_steps] if isinstance(self.num_steps, int) else self.num_steps
        smallest = 2 if self.grid == "flowar" else 1
        if not steps or min(steps) < smallest:
            raise ValueError(f"num_steps must be at least {smallest} on the {self.grid} grid, got {self.num_steps}")

    def check(self, schedule: ScaleSchedule, guidance: Guidance) -> None:
        self.times(0, schedule.num_scales)

    def times(self, k: int, num_scales: int, jump: float = 0.0, end: float = math.inf) -> list[float]:
        """Increasing times from 0 to 1 for scale k of K.

        Args:
            k: Scale.
            num_scales: K.
            jump: Time at which guidance sets in; 0 if it always or never acts.
            end: Time at which it ends; infinite if it does not.

        Raises:
            ValueError: A list of step counts has not one entry per scale.
        """
        num_steps = self.num_steps
        if not isinstance(num_steps, int):
            if len(num_steps) != num_scales:
                raise ValueError(f"num_steps has {len(num_steps)} entries for {num_scales} scales: {num_steps}")
            num_steps = num_steps[k]
        return late_times(num_steps, jump, end) if self.grid == "late" else _GRIDS[self.grid](num_steps)

    def solve(
        self, velocity: Velocity, x_0: Tensor, times: list[float], jump: float = 0.0, end: float = math.inf
    ) -> Tensor:
        """x_0 at times[0] to x at times[-1]; the state is float64, as in the official code, where the device has it.

        The velocity may be discontinuous at `jump` and at `end`. No step looks across: from the first time there or
        after it, Adams-Bashforth starts anew and forgets what it saw before, and Heun's step that ends there takes the
        velocity of just before.
        """
        x, first = x_0.to(widest_float(x_0.device)), 0
        for edge in (jump, end):
            last = next(index for index, t in enumerate(times) if t >= min(edge, times[-1]) - 1e-9)  # as Guidance
            before = times[last] - _JUST_BEFORE if edge <= times[-1] else times[-1]
            x = _METHODS[self.method](lambda x, t, to=before: velocity(x, min(t, to)), x, times[first : last + 1])
            first = last
        return _METHODS[self.method](velocity, x, times[first:]).to(x_0.dtype)
