"""The network that flow matching trains: noisy tokens, time and semantics to a velocity.

Legend: B batch, K scales, L tokens of all scales given, C channels of a token, D semantics, E flow width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalear.models.flow_blocks import FlowBlock, spread
from scalear.models.layers import cached_table, linear, zero_linear
from scalear.models.norms import modulate, rms_norm
from scalear.scales import ScaleSchedule


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


@dataclass
class Condition:
    """What the network makes of semantics, whatever the time: it serves all steps of a solver.

    Attributes:
        cond_BLE: The semantics in the width of the network.
        states: What each block has prepared.
    """

    cond_BLE: Tensor
    states: list[Any]


class VelocityNetwork(nn.Module):
    """A transformer over the tokens of each scale (paper section 3.2). A fresh one returns exactly zero.

    Scales do not see each other here: what a scale knows of the coarser ones reaches it through the semantics.

    Args:
        token_dim: C.
        cond_dim: D.
        schedule: The scales of the model.
        dim: E.
        depth: Blocks.
        block: Class of the blocks; called with (E, D, schedule).
        quantise_time: As in `TimeEmbedding`.
    """

    def __init__(
        self,
        token_dim: int,
        cond_dim: int,
        schedule: ScaleSchedule,
        dim: int,
        depth: int,
        block: Callable[[int, int, ScaleSchedule], FlowBlock],
        quantise_time: bool = False,
    ) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(dim, quantise_time)
        self.cond_proj = linear(cond_dim, dim)
        self.input_proj = linear(token_dim, dim)
        self.blocks = nn.ModuleList([block(dim, cond_dim, schedule) for _ in range(depth)])
        self.final_norm = rms_norm(dim, affine=False)
        self.final_modulation = zero_linear(dim, 2 * dim)
        self.output_proj = zero_linear(dim, token_dim)

    def prepare(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> Condition:
        """All that depends on the semantics alone."""
        cond_BLE = self.cond_proj(hidden_BLD)
        return Condition(cond_BLE, [block.prepare(hidden_BLD, cond_BLE, schedule) for block in self.blocks])

    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, condition: Condition, schedule: ScaleSchedule) -> Tensor:
        """Velocity of the tokens of one or more scales.

        Args:
            x_BLC: Points on the path.
            noise_level_BK: 1 - t of each scale, float32. Not t: near data, float32 has no room for its distance to 1.
            condition: What `prepare` made of their semantics.
            schedule: The K scales given.

        Returns:
            velocity_BLC.
        """
        time_BKE = self.time_embedding(noise_level_BK)
        x_BLE = self.input_proj(x_BLC)
        for block, state in zip(self.blocks, condition.states, strict=True):
            x_BLE = block(x_BLE, time_BKE, state, schedule)
        both_BLE = F.silu(spread(time_BKE, schedule) + condition.cond_BLE)
        shift, scale = self.final_modulation(both_BLE).chunk(2, dim=-1)
        return self.output_proj(modulate(self.final_norm(x_BLE), shift, scale))
