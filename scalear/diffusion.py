"""Diffusion without networks: how noise and data mix at each time, and DDIM.

Time runs as in `scalear.flow`, in thousandths: x_t = signal(t) x_1 + noise(t) x_0 of noise x_0 and data x_1, where
signal^2 + noise^2 = 1. Papers count steps, 1000 (1 - t) of them from data, and call signal^2 alpha-bar, x_0 epsilon.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from scalear.guidance import Guidance
from scalear.hardware.float64 import widest_float
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule

NUM_STEPS = 1000
NoiseSchedule = Literal["cosine", "linear"]


@lru_cache
@torch.inference_mode(False)  # what is made while sampling also serves a later backward pass
def levels(schedule: NoiseSchedule) -> Tensor:
    """Signal and noise after 0, 1 ... 1000 steps away from data, (1001, 2) float64 on the CPU.

    Args:
        schedule: Steps add noise of variances from 1e-4 to 0.02, `linear` (Ho et al., 2020); or signal^2 is a `cosine`,
            squared, and no step's variance above 0.999 (Nichol and Dhariwal, 2021, eq. 17).
    """
    if schedule == "linear":
        variances = torch.linspace(1e-4, 0.02, NUM_STEPS, dtype=torch.float64)
    else:
        angles = (torch.linspace(0, 1, NUM_STEPS + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2
        wanted = angles.cos().square()
        variances = (1 - wanted[1:] / wanted[:-1]).clamp(max=0.999)
    signal_squared = torch.cat([torch.ones(1, dtype=torch.float64), (1 - variances).cumprod(0)])
    return torch.stack([signal_squared.sqrt(), (1 - signal_squared).sqrt()], dim=1)


@dataclass(frozen=True)
class DDIM(Sampling):
    """How a diffusion head carries noise to data: few steps, and no noise but the first (Song et al., 2020)."""

    searched = {"num_steps": [8, 50]}
    guided_in_time = True

    num_steps: int = 25
    """Steps, from 1 to 1000; each evaluates the network once. Evenly spaced, from a step's length away from pure
    noise, where data can hardly be told from it."""
    limit: float = 5.0
    """Data are guessed no further than this from 0, in deviations of the latent. Close to pure noise a small error in
    the noise is a large one in the data."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= NUM_STEPS:
            raise ValueError(f"num_steps of DDIM must be from 1 to {NUM_STEPS}, got {self.num_steps}")
        if not self.limit > 0:
            raise ValueError(f"limit of DDIM must be positive, got {self.limit}; .inf is none")

    def check(self, schedule: ScaleSchedule, guidance: Guidance) -> None:
        """Any will do."""

    def times(self, k: int, num_scales: int, *interval: float) -> list[float]:
        """Increasing times, at last 1: the same for every scale, guided or not."""
        steps = [NUM_STEPS * index // self.num_steps + 1 for index in reversed(range(self.num_steps))]
        return [1 - step / NUM_STEPS for step in [*steps, 0]]

    def solve(
        self, predict: Callable[[Tensor, float], Tensor], x_0: Tensor, times: list[float], schedule: NoiseSchedule
    ) -> Tensor:
        """Guess the noise, and from it the data; mix them anew for the next time (eq. 12 with sigma 0).

        The state is float64, where the device has it.

        Args:
            predict: x_t and t to the noise in x_t.
            x_0: Noise.
            times: As `times` gives them.
            schedule: That of training.
        """
        x = x_0.to(widest_float(x_0.device))
        mixes = [levels(schedule)[round(NUM_STEPS * (1 - t))].tolist() for t in times]
        for t, (signal, noise), (next_signal, next_noise) in zip(times, mixes, mixes[1:], strict=False):
            data = ((x - noise * predict(x, t)) / signal).clamp(-self.limit, self.limit)
            x = next_signal * data + next_noise * (x - signal * data) / noise
        return x.to(x_0.dtype)
