"""The layers that all transformers here are made of.

Legend: B batch, L tokens, D width of the transformer at hand, N heads, d head width, h w token map.
"""

from abc import ABC, abstractmethod
from functools import cache, lru_cache, partial

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import GluMlp
from torch import Tensor, nn

from scalear.attention import Segment, attend, attend_segments
from scalear.dropout import dropout
from scalear.models.cache import LayerCache
from scalear.models.fused import draw_drops, gated_gelu, plainly
from scalear.models.lean import LeanLinear, lean_linear
from scalear.models.split_heads import split_heads
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

    @torch.compiler.disable  # tables are looked up: a graph would make them anew, and serve one schedule only
    def forward(self, schedule: ScaleSchedule, device: torch.device) -> Tensor:
        """turn_Lp2, how far each token turns each pair of channels: cosines and sines."""
        return _turns(schedule, self.head_dim, self.side, device)


# Outside inference mode: a table made while sampling must also serve a later backward pass. Never given up, for CUDA
# graphs of solver steps go on reading it.
@cache
@torch.inference_mode(False)
def _turns(schedule: ScaleSchedule, head_dim: int, side: int, device: torch.device) -> Tensor:
    half = head_dim // 2
    frequencies = 10000.0 ** (-2.0 * torch.arange(half // 2) / half)
    angles = []
    for height, width in schedule.sizes:
        rows = (torch.arange(height) * side / height)[:, None, None] * frequencies
        columns = (torch.arange(width) * side / width)[None, :, None] * frequencies
        grid = torch.cat([rows.expand(height, width, -1), columns.expand(height, width, -1)], dim=-1)
        angles.append(grid.reshape(height * width, half))
    return torch.view_as_real(torch.polar(torch.ones(()), torch.cat(angles))).to(device)


@torch.compiler.disable  # its kernels gain nothing from a graph, which would serve one schedule only
def attend_by_scale(
    q_BNLd: Tensor,
    k_BNLd: Tensor,
    v_BNLd: Tensor,
    schedule: ScaleSchedule,
    causal: bool,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention inside every scale, and with `causal` also to all coarser ones (block-causal)."""
    together = _FEW if causal and q_BNLd.device.type == "cpu" else 1
    segments = _segments(schedule, causal, together, q_BNLd.dtype)
    return attend_segments(q_BNLd, k_BNLd, v_BNLd, segments, dropout, scale)


@torch.compiler.disable  # the cache has another length in every call
def attend_to_cached(q_BNld: Tensor, k_BNld: Tensor, v_BNld: Tensor, cache: LayerCache, scale: float | None) -> Tensor:
    """Attention of one more scale to itself and all that is cached, which it joins."""
    return attend(q_BNld, *cache.append(k_BNld, v_BNld), scale=scale)


# Coarse scales of up to so many tokens in all are done in one masked product on CPUs, where several small ones cost
# more than the half of it that is masked. Where scales do not see each other, a NaN of one must not reach another.
_FEW = 128


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _segments(schedule: ScaleSchedule, causal: bool, together: int, dtype: torch.dtype) -> list[Segment]:
    offsets, first, segments = schedule.offsets, 0, []
    for k, end in enumerate(offsets[1:], start=1):
        if k < schedule.num_scales and offsets[k + 1] - offsets[first] <= together:
            continue  # the next scale joins this one
        keys = slice(0 if causal else offsets[first], end)
        bias_lL = None
        if k - first > 1:
            visible_lL = schedule.block_causal_mask()[offsets[first] : end, keys]
            bias_lL = torch.zeros(()).where(visible_lL, float("-inf")).to(dtype)
        segments.append(Segment(slice(offsets[first], end), keys, bias_lL))
        first = k
    return segments


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
        if cache is None:
            drop_prob = self.dropout if self.training else 0.0
            out_BNLd = attend_by_scale(q_BNLd, k_BNLd, v_BNLd, schedule, self.causal, drop_prob, self.scale)
        else:
            out_BNLd = attend_to_cached(q_BNLd, k_BNLd, v_BNLd, cache, self.scale)
        out_BLD = self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)"))
        return dropout(out_BLD, self.dropout, self.training)

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
        turn_Lp2 = self.rotary(schedule, x_BLD.device)
        return split_heads(self.qkv(x_BLD), self.num_heads, 3, turn_Lp2, num_turned=2)


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

    def keys(self, cond_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
        """Keys and values of the condition: they serve any number of calls with the same condition."""
        turn_Lp2 = self.rotary(schedule, cond_BLD.device)
        return split_heads(self.kv(cond_BLD), self.num_heads, 2, turn_Lp2, num_turned=1)

    def forward(self, x_BLD: Tensor, keys: tuple[Tensor, Tensor], schedule: ScaleSchedule) -> Tensor:
        """Attention to what `keys` made of the condition."""
        (q_BNLd,) = split_heads(self.q(x_BLD), self.num_heads, 1, self.rotary(schedule, x_BLD.device), num_turned=1)
        out_BNLd = attend_by_scale(q_BNLd, *keys, schedule, causal=False)
        return self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)"))


class GatedMlp(GluMlp):
    """The MLP of all FlowAR blocks: two thirds of 4 D hidden units, gated by exact GELU (the "SwiGLU" of the code).

    Args:
        dim: D.
        dropout: On the hidden units and on the output, in training.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__(dim, 2 * int(dim * 4 * 2 / 3), act_layer=nn.GELU, gate_last=False, drop=dropout)
        self.dropout = dropout
        for layer in (self.fc1, self.fc2):
            init_linear(layer)

    def forward(self, x_BLD: Tensor) -> Tensor:
        hidden_BLF = lean_linear(self.fc1, x_BLD)
        prob = self.dropout if self.training else 0.0
        if prob and plainly(hidden_BLF):
            return F.dropout(self.fc2(F.dropout(gated_gelu(hidden_BLF), prob)), prob)
        # Drawn once, for the backward pass calls gated_gelu again.
        drops = draw_drops(hidden_BLF, prob) if prob else ()
        return dropout(lean_linear(self.fc2, hidden_BLF, partial(gated_gelu, drops=drops)), prob, self.training)


def zero_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer that starts at exactly zero."""
    layer = LeanLinear(in_dim, out_dim)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """A linear layer, initialised as all of them here."""
    layer = LeanLinear(in_dim, out_dim, bias=bias)
    init_linear(layer)
    return layer


def init_linear(layer: nn.Linear) -> None:
    """Xavier-uniform weights and zero biases, as the official FlowAR initialises every linear layer."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def normal_linear(in_dim: int, out_dim: int, std: float, bias: bool = True) -> nn.Linear:
    """A linear layer with normal weights and zero biases, as VAR initialises them."""
    layer = LeanLinear(in_dim, out_dim, bias=bias)
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
