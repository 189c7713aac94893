"""A velocity network that knows no neighbours: MAR's MLP (Li et al., 2024; "per-token" in FlowAR's table 5).

Legend: B batch, K scales, L tokens of all scales given, C channels of a token, D semantics, E width of the network.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from scalear.models.layers import linear, zero_linear
from scalear.models.norms import AdaLN
from scalear.models.velocity import TimeEmbedding, VelocityNetwork, spread
from scalear.scales import ScaleSchedule


class PerTokenMLP(VelocityNetwork):
    """Residual MLP blocks with adaLN of time and the token's semantics, given which tokens are independent.

    A fresh one returns exactly zero.

    Args:
        token_dim: C.
        cond_dim: D.
        schedule: The scales of the model; not used.
        dim: E.
        depth: Blocks.
    """

    def __init__(self, token_dim: int, cond_dim: int, schedule: ScaleSchedule, dim: int, depth: int) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(dim)
        self.cond_proj = linear(cond_dim, dim)
        self.input_proj = linear(token_dim, dim)
        self.blocks = nn.ModuleList([PerTokenBlock(dim) for _ in range(depth)])
        self.final_adaln = AdaLN(_layer_norm(dim))
        self.final_modulation = zero_linear(dim, 2 * dim)
        self.output_proj = zero_linear(dim, token_dim)

    def prepare(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> Tensor:
        """The semantics in the width of the network."""
        return self.cond_proj(hidden_BLD)

    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, cond_BLE: Tensor, schedule: ScaleSchedule) -> Tensor:
        cond_BLE = F.silu(spread(self.time_embedding(noise_level_BK), schedule) + cond_BLE)
        x_BLE = self.input_proj(x_BLC)
        for block in self.blocks:
            x_BLE = block(x_BLE, cond_BLE)
        shift_BLE, scale_BLE = self.final_modulation(cond_BLE).chunk(2, dim=-1)
        return self.output_proj(self.final_adaln(x_BLE, shift_BLE, scale_BLE))


class PerTokenBlock(nn.Module):
    """Two linear layers; what goes in is shifted and scaled, what comes out gated. A fresh one is the identity.

    MAR's norm has a weight and a bias, too, which shift and scale make needless.

    Args:
        dim: E.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.adaln = AdaLN(_layer_norm(dim))
        self.mlp = nn.Sequential(linear(dim, dim), nn.SiLU(), linear(dim, dim))
        self.modulation = zero_linear(dim, 3 * dim)

    def forward(self, x_BLE: Tensor, cond_BLE: Tensor) -> Tensor:
        """`cond_BLE` is the activated condition."""
        shift_BLE, scale_BLE, gate_BLE = self.modulation(cond_BLE).chunk(3, dim=-1)
        return x_BLE + gate_BLE * self.mlp(self.adaln(x_BLE, shift_BLE, scale_BLE))


def _layer_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
