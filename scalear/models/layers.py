"""The layers that all transformers here are made of.

Legend: B batch, L tokens, D width of the transformer at hand, N heads, d head width, h w token map.
"""

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import GluMlp
from torch import Tensor, nn

from scalear.attention import SHORT, attend, attend_masked
from scalear.models.cache import LayerCache
from scalear.scales import ScaleSchedule


class Rotary(nn.Module):
    """Two-dimensional rotary positions, every scale on its own grid (official FlowAR code; not in the paper).

    Row i of an h x w map sits at coordinate i * side / h, so all scales cover [0, side). The first half of a
    head is rotated by the row, the second half by the column; neighbouring channels form a pair.

    Args:
        head_dim: d, a multiple of 4.
        side: Side of the finest map in training, the extent of the coordinates.
    """

    def __init__(self, head_dim: int, side: int = 16) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"rotary positions need a head width divisible by 4, got {head_dim}")
        self.head_dim = head_dim
        self.side = side

    def forward(self, q_BNLd: Tensor, k_BNLd: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys of the tokens of `schedule`."""
        cos_Ld, sin_Ld = _rotary_table(schedule, self.head_dim, self.side, q_BNLd.device, q_BNLd.dtype)
        return _rotate(q_BNLd, cos_Ld, sin_Ld), _rotate(k_BNLd, cos_Ld, sin_Ld)


def _rotate(x_BNLd: Tensor, cos_Ld: Tensor, sin_Ld: Tensor) -> Tensor:
    # (a, b) -> (a cos - b sin, b cos + a sin); the sign lives in the table.
    swapped = x_BNLd.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x_BNLd * cos_Ld + swapped * sin_Ld


# Outside inference mode: a table made while sampling must also serve a later backward pass.
@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _rotary_table(
    schedule: ScaleSchedule, head_dim: int, side: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    half = head_dim // 2
    frequencies = 10000.0 ** (-2.0 * torch.arange(half // 2) / half)
    angles = []
    for height, width in schedule.sizes:
        rows = (torch.arange(height) * side / height)[:, None, None] * frequencies
        columns = (torch.arange(width) * side / width)[None, :, None] * frequencies
        grid = torch.cat([rows.expand(height, width, -1), columns.expand(height, width, -1)], dim=-1)
        angles.append(grid.reshape(height * width, half))
    angle_Ld = torch.cat(angles).repeat_interleave(2, dim=-1)
    sign = torch.tensor([-1.0, 1.0]).repeat(half)
    return angle_Ld.cos().to(device, dtype), (angle_Ld.sin() * sign).to(device, dtype)


def attend_by_scale(
    q_BNLd: Tensor,
    k_BNLd: Tensor,
    v_BNLd: Tensor,
    schedule: ScaleSchedule,
    causal: bool,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention inside every scale, and with `causal` also to all coarser ones (block-causal).

    One unmasked call per scale on the keys that it may see: flash kernels take no block-causal mask, and the
    masked half of the product is never computed. Short lists are done in one masked product on CPUs, where the
    many small operations of the other way cost more than the half that they save.
    """
    if causal and q_BNLd.device.type == "cpu" and schedule.num_tokens <= SHORT:
        return attend_masked(q_BNLd, k_BNLd, v_BNLd, _causal_bias(schedule, q_BNLd.dtype), dropout, scale)
    queries = q_BNLd.split(schedule.lengths, dim=2)
    if causal:
        keys, values = ([x_BNLd[:, :, :end] for end in schedule.offsets[1:]] for x_BNLd in (k_BNLd, v_BNLd))
    else:
        keys, values = (x_BNLd.split(schedule.lengths, dim=2) for x_BNLd in (k_BNLd, v_BNLd))
    return torch.cat([attend(*qkv, dropout, scale) for qkv in zip(queries, keys, values, strict=True)], dim=2)


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _causal_bias(schedule: ScaleSchedule, dtype: torch.dtype) -> Tensor:
    return torch.zeros(()).where(schedule.block_causal_mask(), float("-inf")).to(dtype)


class Attention(nn.Module, ABC):
    """Multi-head self-attention over the tokens of one or more scales. Subclasses make queries, keys and values.

    Args:
        num_heads: N.
        head_dim: d.
        causal: Also attend to coarser scales; otherwise every scale is on its own.
        dropout: On attention weights and on the output.
        scale: Of the softmax's argument; 1 / sqrt(d) by default.
    """

    proj: nn.Linear

    def __init__(
        self, num_heads: int, head_dim: int, causal: bool, dropout: float = 0.0, scale: float | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    @abstractmethod
    def project(self, x_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, L, d) of the tokens of `schedule`."""

    def forward(self, x_BLD: Tensor, schedule: ScaleSchedule, cache: LayerCache | None = None) -> Tensor:
        """Attention over the tokens of `schedule`, which follow the cached ones where a cache is given."""
        q_BNLd, k_BNLd, v_BNLd = self.project(x_BLD, schedule)
        dropout = self.dropout if self.training else 0.0
        if cache is None:
            out_BNLd = attend_by_scale(q_BNLd, k_BNLd, v_BNLd, schedule, self.causal, dropout, self.scale)
        else:
            out_BNLd = attend(q_BNLd, *cache.append(k_BNLd, v_BNLd), scale=self.scale)
        out_BLD = self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)"))
        return F.dropout(out_BLD, self.dropout, self.training)

    def make_cache(self, batch: int, num_tokens: int, device: torch.device, dtype: torch.dtype) -> LayerCache:
        """Memory for the keys and values of `num_tokens` tokens of `batch` rows."""
        return LayerCache((batch, self.num_heads, num_tokens, self.head_dim), device, dtype)


class RotaryAttention(Attention):
    """FlowAR's attention.

    Args:
        dim: D.
        num_heads: N.
        rotary: Positions of queries and keys.
        causal: As in `Attention`.
        qkv_bias: Bias of the query, key and value projection.
        dropout: As in `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        rotary: Rotary,
        causal: bool,
        qkv_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_heads, dim // num_heads, causal, dropout)
        self.rotary = rotary
        self.qkv = linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = linear(dim, dim)

    def project(self, x_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor, Tensor]:
        q_BNLd, k_BNLd, v_BNLd = rearrange(self.qkv(x_BLD), "B L (c N d) -> c B N L d", c=3, N=self.num_heads)
        return *self.rotary(q_BNLd, k_BNLd, schedule), v_BNLd


class CrossAttention(nn.Module):
    """Attention from the tokens of each scale to as many condition tokens of the same scale (no biases but the last).

    Args:
        dim: D.
        cond_dim: Width of the condition.
        num_heads: N.
        rotary: Positions of queries and keys.
    """

    def __init__(self, dim: int, cond_dim: int, num_heads: int, rotary: Rotary) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.q = linear(dim, dim, bias=False)
        self.kv = linear(cond_dim, 2 * dim, bias=False)
        self.proj = linear(dim, dim)

    def forward(self, x_BLD: Tensor, cond_BLD: Tensor, schedule: ScaleSchedule) -> Tensor:
        q_BNLd = rearrange(self.q(x_BLD), "B L (N d) -> B N L d", N=self.num_heads)
        k_BNLd, v_BNLd = rearrange(self.kv(cond_BLD), "B L (c N d) -> c B N L d", c=2, N=self.num_heads)
        q_BNLd, k_BNLd = self.rotary(q_BNLd, k_BNLd, schedule)
        out_BNLd = attend_by_scale(q_BNLd, k_BNLd, v_BNLd, schedule, causal=False)
        return self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)"))


def gated_mlp(dim: int, dropout: float = 0.0) -> GluMlp:
    """The MLP of all FlowAR blocks: two thirds of 4 D hidden units, gated by exact GELU (the "SwiGLU" of the code)."""
    hidden = int(dim * 4 * 2 / 3)
    mlp = GluMlp(dim, 2 * hidden, act_layer=nn.GELU, gate_last=False, drop=dropout)
    for layer in (mlp.fc1, mlp.fc2):
        init_linear(layer)
    return mlp


def zero_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer that starts at exactly zero."""
    layer = nn.Linear(in_dim, out_dim)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """A linear layer, initialised as all of them here."""
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    init_linear(layer)
    return layer


def init_linear(layer: nn.Linear) -> None:
    """Xavier-uniform weights and zero biases, as the official FlowAR initialises every linear layer."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def normal_linear(in_dim: int, out_dim: int, std: float, bias: bool = True) -> nn.Linear:
    """A linear layer with normal weights and zero biases, as VAR initialises them."""
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    init_normal(layer, std)
    return layer


def init_normal(layer: nn.Linear, std: float) -> None:
    """Normal weights, cut off at +-2 (official code), and zero biases."""
    nn.init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def var_std(dim: int) -> float:
    """Standard deviation that VAR's weights of a transformer of width `dim` start with, up to factors."""
    return (3 * dim) ** -0.5
