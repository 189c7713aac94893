"""Queries, keys and values out of one product, laid out, turned and normalised for attention in one step, on CPUs.

Legend: B batch, L tokens, N heads, d head width, p = d / 2 pairs, X all parts and heads after one another.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.fast.pieces import pieces, wide
from scalear.models.attention import Rotary
from scalear.models.var_block import VARAttention

_TINY = 1e-12  # shortest vector that has a direction, as in F.normalize


def split_turned(self: Rotary, x_BLX: Tensor, turns_Lp2: Tensor, num_parts: int, num_turned: int) -> tuple[Tensor, ...]:
    """`Rotary.split_heads`."""
    return _SplitTurned.apply(x_BLX, turns_Lp2, num_parts, num_turned)


def split_directions(self: VARAttention, qkv_BLX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`VARAttention.split_directions`."""
    return _SplitDirections.apply(qkv_BLX, self.head_scales())


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    pairs = wide(x).unflatten(-1, (-1, 2)).contiguous()
    return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(x.dtype)


class _SplitTurned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_BLX: Tensor, turns_Lp2: Tensor, num_parts: int, num_turned: int
    ) -> tuple[Tensor, ...]:
        x = x_BLX.unflatten(-1, (num_parts, -1, 2 * turns_Lp2.shape[1])).permute(2, 0, 3, 1, 4)
        parts = tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in x)
        turn_Lp = torch.view_as_complex(turns_Lp2)
        for rows in pieces(x_BLX):
            for i, part in enumerate(parts):
                part[rows] = _turned(x[i, rows], turn_Lp) if i < num_turned else x[i, rows]
        ctx.save_for_backward(turns_Lp2)
        ctx.num_turned, ctx.shape = num_turned, x_BLX.shape
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (turns_Lp2,) = ctx.saved_tensors
        back_Lp = torch.view_as_complex(turns_Lp2).conj()
        dx_BLX = grads[0].new_empty(ctx.shape)
        dx = dx_BLX.unflatten(-1, (len(grads), grads[0].shape[1], -1)).permute(2, 0, 3, 1, 4)
        for rows in pieces(dx_BLX):
            for i, grad in enumerate(grads):
                dx[i, rows] = _turned(grad[rows], back_Lp) if i < ctx.num_turned else grad[rows]
        return dx_BLX, None, None, None


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
