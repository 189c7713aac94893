"""The transformer block of VAR and FlexVAR.

Legend: B batch, L tokens, D width, F hidden width of the MLP, N heads, d head width, X = 3 N d.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from scalear.models.attention import Attention, split_heads
from scalear.models.blocks import AdaLNBlock, Place
from scalear.models.layers import init_normal, normal_linear, require_heads, var_std
from scalear.scales import ScaleSchedule


class CodeBlock(AdaLNBlock):
    """AdaLN block of the generators of codes: LayerNorm and a plain MLP around any mixer of tokens.

    Gates start close to zero, not at it.

    Args:
        dim: D, also of the condition.
        place: How deep the block sits.
        mixer: Attention, or what stands in its place.
        mlp_ratio: Hidden units of the MLP over D.
        drop_path: As in `VARBlock`.
        gate_init: Factor on the gates' initial weights.
        exact_gelu: As in `VARBlock`.
        shared_modulation: As in `VARBlock`.
    """

    def __init__(
        self,
        dim: int,
        place: Place,
        mixer: nn.Module,
        mlp_ratio: float,
        drop_path: float,
        gate_init: float,
        exact_gelu: bool,
        shared_modulation: bool = False,
    ) -> None:
        super().__init__(
            norm=nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False),
            mixer=mixer,
            mlp=VARMlp(dim, round(dim * mlp_ratio), exact_gelu, residual_std(dim, place)),
            modulation=_SharedModulation(dim) if shared_modulation else normal_linear(dim, 6 * dim, var_std(dim)),
            drop_path=drop_path * place.layer / max(1, place.num_layers - 1),
        )
        self.shares_modulation = shared_modulation
        with torch.no_grad():
            weight = next(self.modulation.parameters())
            weight[: 2 * dim] *= gate_init
            weight[2 * dim :] *= 0.5


def residual_std(dim: int, place: Place) -> float:
    """Standard deviation that the weights start with whose output is added to the residual stream."""
    return var_std(dim) / math.sqrt(2 * place.num_layers)


class VARBlock(CodeBlock):
    """The block with biased attention without rotary positions (official code).

    Args:
        dim: D, also of the condition.
        place: How deep the block sits.
        num_heads: N; the official code uses D // 64.
        normalise: Attend by direction only, with a learned temperature per head, as all released models do; False
            for a quarter of the usual scaled dot product.
        mlp_ratio: Hidden units of the MLP over D.
        drop_path: Probability that the last block is skipped by a sample; it rises linearly from none at the first.
        gate_init: Factor on the gates' initial weights.
        exact_gelu: GELU itself instead of its approximation by tanh (official code).
        shared_modulation: Add a learned table to 6 D numbers that all blocks share, in place of a linear map of the
            condition in every block (VAR-d36).
    """

    def __init__(
        self,
        dim: int,
        place: Place,
        num_heads: int,
        normalise: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        gate_init: float = 1e-5,
        exact_gelu: bool = False,
        shared_modulation: bool = False,
    ) -> None:
        require_heads(dim, num_heads)
        attention = VARAttention(dim, num_heads, normalise, residual_std(dim, place))
        super().__init__(dim, place, attention, mlp_ratio, drop_path, gate_init, exact_gelu, shared_modulation)


class _SharedModulation(nn.Module):
    """Six vectors of a block's own, added to those that all blocks share.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6 * dim) / math.sqrt(dim))

    def forward(self, shared_B1D: Tensor) -> Tensor:
        return shared_B1D + self.table


class VARMlp(Mlp):
    """Two linear layers with a GELU between them.

    Args:
        dim: D.
        hidden_dim: F.
        exact_gelu: As in `VARBlock`.
        fc2_std: Standard deviation of the second layer's initial weights.
    """

    def __init__(self, dim: int, hidden_dim: int, exact_gelu: bool, fc2_std: float) -> None:
        super().__init__(dim, hidden_dim, act_layer=partial(nn.GELU, approximate="none" if exact_gelu else "tanh"))
        init_normal(self.fc1, var_std(dim))
        init_normal(self.fc2, fc2_std)


class VARAttention(Attention):
    """Causal attention with biases on queries and values, and none on keys.

    Args:
        dim: D.
        num_heads: N.
        normalise: As in `VARBlock`.
        proj_std: Standard deviation of the output projection's initial weights.
    """

    def __init__(self, dim: int, num_heads: int, normalise: bool, proj_std: float) -> None:
        head_dim = dim // num_heads
        super().__init__(num_heads, head_dim, causal=True, scale=1.0 if normalise else 0.25 / math.sqrt(head_dim))
        self.qkv = normal_linear(dim, 3 * dim, var_std(dim), bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.log_scale_N = nn.Parameter(torch.full((num_heads,), math.log(4.0))) if normalise else None
        self.proj = normal_linear(dim, dim, proj_std)

    def project(self, x_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor, Tensor]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv_BLX = F.linear(x_BLD, self.qkv.weight, bias)
        if self.log_scale_N is None:
            return split_heads(qkv_BLX, self.head_dim, num_parts=3).unbind()
        return self.split_directions(qkv_BLX)

    def split_directions(self, qkv_BLX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, L, d), the first two reduced to their directions, at least in float32."""
        q_BNLd, k_BNLd, v_BNLd = split_heads(qkv_BLX, self.head_dim, num_parts=3)
        wide = torch.promote_types(v_BNLd.dtype, torch.float32)
        q_BNLd = F.normalize(q_BNLd.to(wide), dim=-1) * self.head_scales()[:, None, None]
        return q_BNLd.to(v_BNLd.dtype), F.normalize(k_BNLd.to(wide), dim=-1).to(v_BNLd.dtype), v_BNLd

    def head_scales(self) -> Tensor:
        """The learned factor on the cosines of each head, (N,), at most 100."""
        return self.log_scale_N.clamp(max=math.log(100.0)).exp()
