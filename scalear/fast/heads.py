"""Queries, keys and values out of one product, laid out, turned and normalised for attention in one step, on CPUs.

Legend: B batch, L tokens, N heads, d head width, p = d / 2 pairs, X all parts and heads after one another.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.fast.attention import attend_by_scale
from scalear.fast.pieces import pieces, wide
from scalear.models.attention import CrossAttention, RotaryAttention
from scalear.models.var_block import VARAttention
from scalear.scales import ScaleSchedule

_TINY = 1e-12  # shortest vector that has a direction, as in F.normalize


def project_rotary(self: RotaryAttention, x_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """`RotaryAttention.project`."""
    turn_Lp2 = self.rotary.turns(schedule, x_BLD.device)
    return split_heads(self.qkv(x_BLD), self.num_heads, 3, turn_Lp2, num_turned=2)


def project_var(self: VARAttention, x_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """`VARAttention.project`."""
    bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
    qkv_BLX = F.linear(x_BLD, self.qkv.weight, bias)
    if self.log_scale_N is None:
        return split_heads(qkv_BLX, self.num_heads, 3, None, num_turned=0)
    return split_directions(qkv_BLX, self.head_scales())


def cross_keys(self: CrossAttention, cond_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    """`CrossAttention.keys`."""
    turn_Lp2 = self.rotary.turns(schedule, cond_BLD.device)
    return split_heads(self.kv(cond_BLD), self.num_heads, 2, turn_Lp2, num_turned=1)


def cross_attention(
    self: CrossAttention, x_BLD: Tensor, keys: tuple[Tensor, Tensor], schedule: ScaleSchedule
) -> Tensor:
    """`CrossAttention.forward`."""
    turn_Lp2 = self.rotary.turns(schedule, x_BLD.device)
    (q_BNLd,) = split_heads(self.q(x_BLD), self.num_heads, 1, turn_Lp2, num_turned=1)
    out_BNLd = attend_by_scale(q_BNLd, *keys, schedule, causal=False)
    return self.proj(out_BNLd.transpose(1, 2).flatten(2))


def split_heads(
    x_BLX: Tensor, num_heads: int, num_parts: int, turn_Lp2: Tensor | None, num_turned: int
) -> tuple[Tensor, ...]:
    """Queries, keys, values out of one product, laid out for attention and turned by their positions.

    Args:
        x_BLX: The parts after one another, each all heads after one another.
        num_heads: N.
        num_parts: Number of parts.
        turn_Lp2: Rotation of each pair of neighbouring channels, cosine and sine; None turns nothing.
        num_turned: How many of the parts, from the first on, are turned.

    Returns:
        Each part, (B, N, L, d).
    """
    return _SplitHeads.apply(x_BLX, num_heads, num_parts, turn_Lp2, num_turned)


def split_directions(x_BLX: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as `split_heads` lays them out, the first two reduced to their directions.

    Args:
        x_BLX: The three, each all heads after one another.
        length_N: Length that the queries of each head are given; that of keys is one.
    """
    return _SplitDirections.apply(x_BLX, length_N)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    pairs = wide(x).unflatten(-1, (-1, 2)).contiguous()
    return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(x.dtype)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_BLX: Tensor, num_heads: int, num_parts: int, turn_Lp2: Tensor | None, num_turned: int
    ) -> tuple[Tensor, ...]:
        x = x_BLX.unflatten(-1, (num_parts, num_heads, -1)).permute(2, 0, 3, 1, 4)
        parts = tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in x)
        turn_Lp = None if turn_Lp2 is None else torch.view_as_complex(turn_Lp2)
        for rows in pieces(x_BLX):
            for i, part in enumerate(parts):
                part[rows] = _turned(x[i, rows], turn_Lp) if i < num_turned else x[i, rows]
        ctx.save_for_backward(turn_Lp2)
        ctx.num_turned, ctx.shape = num_turned, x_BLX.shape
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (turn_Lp2,) = ctx.saved_tensors
        back_Lp = None if turn_Lp2 is None else torch.view_as_complex(turn_Lp2).conj()
        dx_BLX = grads[0].new_empty(ctx.shape)
        dx = dx_BLX.unflatten(-1, (len(grads), grads[0].shape[1], -1)).permute(2, 0, 3, 1, 4)
        for rows in pieces(dx_BLX):
            for i, grad in enumerate(grads):
                dx[i, rows] = _turned(grad[rows], back_Lp) if i < ctx.num_turned else grad[rows]
        return dx_BLX, None, None, None, None


class _SplitDirections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_BLX: Tensor, length_N: Tensor) -> tuple[Tensor, ...]:
        x = x_BLX.unflatten(-1, (3, len(length_N), -1)).permute(2, 0, 3, 1, 4)
        parts = tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in x)
        lengths = torch.stack([length_N, torch.ones_like(length_N)])[..., None, None]
        factors = lengths.new_empty(2, *parts[0].shape[:-1], 1)
        for rows in pieces(x_BLX):
            for part, source, length, factor in zip(parts, x, lengths, factors, strict=False):
                vectors = wide(source[rows])
                factor[rows] = length / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min_(_TINY)
                part[rows] = vectors * factor[rows]
            parts[2][rows] = x[2, rows]
        ctx.save_for_backward(*parts[:2], lengths, factors)
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        *parts, lengths, factors = ctx.saved_tensors
        batch, num_heads, num_tokens, head_dim = grads[0].shape
        dx_BLX = grads[2].new_empty(batch, num_tokens, 3 * num_heads * head_dim)
        dx = dx_BLX.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        dlength_N = torch.zeros_like(lengths[0, :, 0, 0])
        for rows in pieces(dx_BLX):
            for i, (part, length, factor) in enumerate(zip(parts, lengths, factors, strict=True)):
                vectors, grad = wide(part[rows]), wide(grads[i][rows])
                along = (grad * vectors).sum(-1, keepdim=True).div_(length)  # length times what leads outwards
                dx[i, rows] = torch.addcmul(grad, vectors, along / length, value=-1).mul_(factor[rows])
                if i == 0:
                    dlength_N += along.sum((0, 2, 3))
            dx[2, rows] = grads[2][rows]
        return dx_BLX, dlength_N
