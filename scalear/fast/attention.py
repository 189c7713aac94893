"""Attention on CPUs: two products and a softmax, a cache-full of scores at a time.

Legend: B batch, N heads, G = B N, l queries, L keys, d head width.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.fast.dropout import Drop
from scalear.models.attention import ScaledDotProduct
from scalear.scales import ScaleSchedule
from scalear.tokenizers.conv import AttentionBlock

# On CPUs PyTorch's fused kernel is several times slower than two plain products, most of all in the backward pass,
# as long as the scores of the heads at hand fit the cache: so many of them are made at a time.
_SCORES = 1 << 21
# Coarse scales of up to so many tokens in all are done in one masked product, as several small ones cost more than the
# half of it that is masked. Where scales do not see each other, a NaN of one must not reach another.
_FEW = 128


class Segment(NamedTuple):
    """A run of queries that sees a run of keys.

    Attributes:
        queries: Which queries.
        keys: Which keys.
        bias_lL: Added to the scaled scores, of the queries' dtype: -inf where a query must not see a key.
    """

    queries: slice
    keys: slice
    bias_lL: Tensor | None = None


def scaled_dot_product(
    self: ScaledDotProduct, q_BNLd: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, schedule: ScaleSchedule
) -> Tensor:
    """`ScaledDotProduct.forward`."""
    segments = _segments(schedule, self.causal, k_BNLd.shape[2] - q_BNLd.shape[2], q_BNLd.dtype)
    return attend_segments(q_BNLd, k_BNLd, v_BNLd, segments, self.dropout if self.training else 0.0, self.scale)


def attend_to_all(self: AttentionBlock, q_B1LC: Tensor, k_B1LC: Tensor, v_B1LC: Tensor) -> Tensor:
    """`AttentionBlock.attend` of tokenizers."""
    whole = slice(0, q_B1LC.shape[2])
    return attend_segments(q_B1LC, k_B1LC, v_B1LC, [Segment(whole, whole)])


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # a mask made while sampling must also serve a later backward pass
def _segments(schedule: ScaleSchedule, causal: bool, earlier: int, dtype: torch.dtype) -> list[Segment]:
    """Of the tokens of a schedule, whose keys come after `earlier` ones."""
    offsets, first, segments = schedule.offsets, 0, []
    for k, end in enumerate(offsets[1:], start=1):
        if causal and k < schedule.num_scales and offsets[k + 1] - offsets[first] <= _FEW:
            continue  # the next scale joins this one
        keys = slice(0 if causal else earlier + offsets[first], earlier + end)
        bias_lL = None
        if k - first > 1:
            visible_lL = F.pad(schedule.block_causal_mask()[offsets[first] : end], (earlier, 0), value=True)[:, keys]
            bias_lL = torch.zeros(()).where(visible_lL, float("-inf")).to(dtype)
        segments.append(Segment(slice(offsets[first], end), keys, bias_lL))
        first = k
    return segments


def attend_segments(
    q_BNld: Tensor,
    k_BNLd: Tensor,
    v_BNLd: Tensor,
    segments: list[Segment],
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention of several runs of queries, each to its own run of keys.

    The backward pass makes the attention weights again instead of keeping them.

    Args:
        q_BNld: Queries.
        k_BNLd: Keys.
        v_BNLd: Values.
        segments: In order; together they cover all queries.
        dropout: Probability of dropping an attention weight.
        scale: 1 / sqrt(d) by default.

    Returns:
        (B, N, l, d).
    """
    scale = q_BNld.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(q_BNld, k_BNLd, v_BNLd, segments, dropout, scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q_BNld: Tensor,
        k_BNLd: Tensor,
        v_BNLd: Tensor,
        segments: list[Segment],
        dropout: float,
        scale: float,
    ) -> Tensor:
        q_Gld, k_GLd, v_GLd = (x.flatten(0, 1) for x in (q_BNld, k_BNLd, v_BNLd))
        out_Gld = torch.empty_like(q_Gld)
        drops = []
        with torch.autocast("cpu", enabled=False):
            for heads, rows, keys, bias in _tiles(len(q_Gld), segments):
                weights = _weights(q_Gld[heads, rows], k_GLd[heads, keys], scale, bias)
                if dropout:
                    drops.append(Drop(weights.shape, dropout))
                    drops[-1].clear_(weights)
                out_Gld[heads, rows] = weights @ v_GLd[heads, keys]
            if dropout:
                out_Gld *= drops[0].scale
        ctx.save_for_backward(q_Gld, k_GLd, v_GLd)
        ctx.drops = drops
        ctx.segments, ctx.scale, ctx.batch = segments, scale, q_BNld.shape[:2]
        return out_Gld.unflatten(0, ctx.batch)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_BNld: Tensor) -> tuple[Tensor | None, ...]:
        q_Gld, k_GLd, v_GLd = ctx.saved_tensors
        grad_Gld = grad_BNld.flatten(0, 1)
        if ctx.drops:
            grad_Gld = grad_Gld * ctx.drops[0].scale
        dq_Gld, dk_GLd, dv_GLd = torch.empty_like(q_Gld), torch.zeros_like(k_GLd), torch.zeros_like(v_GLd)
        with torch.autocast("cpu", enabled=False):
            for tile, (heads, rows, keys, bias) in enumerate(_tiles(len(q_Gld), ctx.segments)):
                q, k, grad = q_Gld[heads, rows], k_GLd[heads, keys], grad_Gld[heads, rows]
                weights = _weights(q, k, ctx.scale, bias)
                used, dweights = weights, grad @ v_GLd[heads, keys].mT
                if ctx.drops:
                    used = ctx.drops[tile].clear_(weights.clone())
                    ctx.drops[tile].clear_(dweights)
                dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
                dscores *= ctx.scale
                dv_GLd[heads, keys] += used.mT @ grad
                dq_Gld[heads, rows] = dscores @ k
                dk_GLd[heads, keys] += dscores.mT @ q
        return *(x.unflatten(0, ctx.batch) for x in (dq_Gld, dk_GLd, dv_GLd)), None, None, None


def _weights(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    if bias is None:
        scores = (q if scale == 1 else q * scale) @ k.mT
    else:
        scores = torch.baddbmm(bias, q, k.mT, alpha=scale)
    return torch.softmax(scores, -1, out=scores)


def _tiles(num_heads: int, segments: list[Segment]) -> Iterator[tuple[slice, slice, slice, Tensor | None]]:
    """(heads, queries, keys, bias) of so many scores each, that together cover all."""
    for queries, keys, bias in segments:
        num_keys = keys.stop - keys.start
        step = max(32, _SCORES // (2 * num_keys))
        for first in range(queries.start, queries.stop, step):
            rows = slice(first, min(first + step, queries.stop))
            part = None if bias is None else bias[rows.start - queries.start : rows.stop - queries.start]
            together = max(1, _SCORES // (num_keys * (rows.stop - rows.start)))
            for head in range(0, num_heads, together):
                yield slice(head, min(head + together, num_heads)), rows, keys, part
