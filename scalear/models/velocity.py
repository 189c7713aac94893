"""What flow matching trains: noisy tokens, time and semantics to a velocity; or diffusion, to noise.

Legend: B batch, K scales, L tokens of all scales given, C channels of a token, D semantics.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from scalear.models.layers import cached_table, linear
from scalear.scales import ScaleSchedule


class VelocityNetwork(nn.Module, ABC):
    """Any network that a `DenoisingHead` trains; in YAML built without its first three arguments, (C, D, schedule)."""

    @abstractmethod
    def prepare(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> Any:
        """All that depends on the semantics alone, whatever the time: it serves all steps of a solver."""

    @abstractmethod
    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, condition: Any, schedule: ScaleSchedule) -> Tensor:
        """Velocity (or noise) of the tokens of one or more scales, which do not see each other.

        Args:
            x_BLC: Points on the path.
            noise_level_BK: 1 - t of each scale, float32. Not t: near data, float32 has no room for its distance to 1.
            condition: What `prepare` made of their semantics.
            schedule: The K scales given.

        Returns:
            velocity_BLC.
        """


class TimeEmbedding(nn.Module):
    """Flow time to a vector: 256 sinusoids of the noise level 1 - t in thousandths, then a two-layer MLP.

    Args:
        dim: Width of the result.
        quantise: Truncate the noise level to thousandths, as the official code does in training and sampling.
            Off by default: it only coarsens time.
    """

    def __init__(self, dim: int, quantise: bool = False) -> None:
        super().__init__()
        self.quantise = quantise
        self.mlp = nn.Sequential(linear(256, dim), nn.SiLU(), linear(dim, dim))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, noise_level: Tensor) -> Tensor:
        """Noise levels of any shape, float32 -> (..., dim)."""
        angles = self.thousandths(noise_level)[..., None] * _frequencies(noise_level.device)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def thousandths(self, noise_level: Tensor) -> Tensor:
        """What the sinusoids are of; whole numbers if quantised."""
        thousandths = 1000.0 * noise_level
        return thousandths.trunc() if self.quantise else thousandths


@cached_table
def _frequencies(device: torch.device) -> Tensor:
    # Powers in double precision, rounded once: float32 exp differs in the last bit between devices, which times 1000
    # would be seen.
    exponents = -math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128
    return torch.tensor([math.exp(exponent) for exponent in exponents.tolist()], dtype=torch.float32, device=device)


def spread(x_BKE: Tensor, schedule: ScaleSchedule) -> Tensor:
    """One vector per scale to one per token, or to something that broadcasts like that."""
    return x_BKE if schedule.num_scales == 1 else x_BKE[:, schedule.level_ids(x_BKE.device)]
