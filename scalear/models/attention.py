"""Attention over the tokens of scales: inside each scale, or also to all coarser ones (block-causal).

Legend: B batch, L tokens of all scales at hand, l of one scale, D width, N heads, d head width, h w token map.
"""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from scalear.models.layers import cached_table, linear
from scalear.scales import ScaleSchedule


class Rotary(nn.Module):
    """Two-dimensional rotary positions, every scale on its own grid (official FlowAR code; not in the paper).

    Row i of an h x w map sits at coordinate i * side / h, so all scales cover [0, side). The first half of a
    head is rotated by the row, the second half by the column; neighbouring channels form a pair.

    Args:
        head_dim: d, a multiple of 4.
        side: Side of the finest map in training, the extent of the coordinates.
    """

    def __init__(self, head_dim: int, side: int) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"rotary positions need a head width divisible by 4, got {head_dim}")
        self.head_dim = head_dim
        self.side = side

    def forward(self, x_BNLd: Tensor, turns_Lp2: Tensor) -> Tensor:
        """Queries or keys, turned; in float32."""
        cos_Lp, sin_Lp = turns_Lp2.unbind(-1)
        a_BNLp, b_BNLp = x_BNLd.unflatten(-1, (-1, 2)).unbind(-1)
        pairs = [a_BNLp * cos_Lp - b_BNLp * sin_Lp, a_BNLp * sin_Lp + b_BNLp * cos_Lp]
        return torch.stack(pairs, dim=-1).flatten(-2).to(x_BNLd.dtype)

    def split_heads(self, x_BLX: Tensor, turns_Lp2: Tensor, num_parts: int, num_turned: int) -> tuple[Tensor, ...]:
        """Parts as `split_heads` gives them, the first `num_turned` of them turned."""
        parts = split_heads(x_BLX, self.head_dim, num_parts)
        return *self(parts[:num_turned], turns_Lp2), *parts[num_turned:]

    def turns(self, schedule: ScaleSchedule, device: torch.device) -> Tensor:
        """(L, d / 2, 2): cosine and sine of the angle by which each token turns each pair of channels.

        Looked up before the products whose results they turn, since it splits a graph of torch.compile.
        """
        return _turns(schedule, self.head_dim, self.side, device)


@cached_table
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


class ScaledDotProduct(nn.Module):
    """softmax(scale q k^T) v of each scale's tokens: to themselves, and if causal to all that come before.

    Flash kernels take no block-causal mask; one call per scale needs none, nor does it compute what is masked.

    Args:
        causal: Attend to coarser scales, too.
        dropout: Probability of dropping an attention weight, in training.
        scale: 1 / sqrt(d) by default.
    """

    def __init__(self, causal: bool, dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = dropout
        self.scale = scale

    @torch.compiler.disable  # its kernels gain nothing from a graph, which would serve one schedule only
    def forward(self, q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, schedule: ScaleSchedule) -> Tensor:
        """(B, N, L, d) of the tokens of `schedule`; keys and values may begin with those of earlier scales."""
        dropout = self.dropout if self.training else 0.0
        earlier, scales = k_BNLd.shape[2] - q_BNLd.shape[2], []
        for first, end in pairwise(schedule.offsets):
            seen = slice(0 if self.causal else earlier + first, earlier + end)
            q_BNld, k_BNsd, v_BNsd = q_BNLd[:, :, first:end], k_BNLd[:, :, seen], v_BNLd[:, :, seen]
            scales.append(F.scaled_dot_product_attention(q_BNld, k_BNsd, v_BNsd, dropout_p=dropout, scale=self.scale))
        return torch.cat(scales, dim=2)


class LayerCache:
    """Keys and values that one attention layer has seen, in memory allocated once, for the first of them.

    Args:
        num_tokens: L, all that will come.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._length = 0

    @torch.compiler.disable  # it has another length in every call
    def append(self, k_BNld: Tensor, v_BNld: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of one more scale; views of everything stored so far."""
        if self._keys is None:
            batch, num_heads, _, head_dim = k_BNld.shape
            self._keys, self._values = k_BNld.new_empty(2, batch, num_heads, self._num_tokens, head_dim)
        end = self._length + k_BNld.shape[2]
        self._keys[:, :, self._length : end] = k_BNld
        self._values[:, :, self._length : end] = v_BNld
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


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
        self.attend = ScaledDotProduct(causal, dropout, scale)
        self.proj_drop = nn.Dropout(dropout)

    @abstractmethod
    def project(self, x_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, N, L, d) of the tokens of `schedule`."""

    def forward(self, x_BLD: Tensor, schedule: ScaleSchedule, cache: LayerCache | None = None) -> Tensor:
        """Attention over the tokens of `schedule`, which follow the cached ones where a cache is given."""
        q_BNLd, k_BNLd, v_BNLd = self.project(x_BLD, schedule)
        if cache is not None:
            k_BNLd, v_BNLd = cache.append(k_BNLd, v_BNLd)
        out_BNLd = self.attend(q_BNLd, k_BNLd, v_BNLd, schedule)
        return self.proj_drop(self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)")))

    def make_cache(self, num_tokens: int) -> LayerCache:
        """A place for the keys and values of `num_tokens` tokens."""
        return LayerCache(num_tokens)


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
        turns_Lp2 = self.rotary.turns(schedule, x_BLD.device)
        return self.rotary.split_heads(self.qkv(x_BLD), turns_Lp2, num_parts=3, num_turned=2)


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
        self.attend = ScaledDotProduct(causal=False)
        self.proj = linear(dim, dim)

    def keys(self, cond_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
        """Keys and values of the condition: they serve any number of calls with the same condition."""
        turns_Lp2 = self.rotary.turns(schedule, cond_BLD.device)
        return self.rotary.split_heads(self.kv(cond_BLD), turns_Lp2, num_parts=2, num_turned=1)

    def forward(self, x_BLD: Tensor, keys: tuple[Tensor, Tensor], schedule: ScaleSchedule) -> Tensor:
        """Attention to what `keys` made of the condition."""
        turns_Lp2 = self.rotary.turns(schedule, x_BLD.device)
        (q_BNLd,) = self.rotary.split_heads(self.q(x_BLD), turns_Lp2, num_parts=1, num_turned=1)
        out_BNLd = self.attend(q_BNLd, *keys, schedule)
        return self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)"))


def split_heads(x_BLX: Tensor, head_dim: int, num_parts: int) -> Tensor:
    """Parts such as queries, keys and values after one another, each all heads after one another, to (B, N, L, d)."""
    return rearrange(x_BLX, "B L (parts N d) -> parts B N L d", parts=num_parts, d=head_dim)
