"""The gated MLP on CPUs: activation, gate and dropout in one pass over a few tokens at a time.

Legend: B batch, L tokens, D width, F hidden width.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.fast.dropout import Drop
from scalear.fast.pieces import pieces
from scalear.models.layers import GatedMlp


def gated_mlp(self: GatedMlp, x_BLD: Tensor) -> Tensor:
    """`GatedMlp.forward`."""
    prob = self.drop1.p if self.training else 0.0
    return self.drop2(self.fc2(gated_gelu(self.fc1(x_BLD), prob)))


def gated_gelu(hidden_BLF: Tensor, drop_prob: float = 0.0) -> Tensor:
    """gelu(a) b of the two halves a, b of the last axis, each number dropped with the given probability."""
    half_XF = hidden_BLF.flatten(0, -2).chunk(2, dim=-1)[0]
    drops = [Drop(half_XF[rows].shape, drop_prob) for rows in pieces(half_XF)] if drop_prob else ()
    return _GatedGelu.apply(hidden_BLF, drops)


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden_BLF: Tensor, drops: Sequence[Drop]) -> Tensor:
        a_XF, b_XF = hidden_BLF.flatten(0, -2).chunk(2, dim=-1)
        out_XF = torch.empty_like(b_XF)
        for rows, drop in zip_longest(pieces(b_XF), drops):
            out = torch.ops.aten.gelu.out(a_XF[rows], out=out_XF[rows]).mul_(b_XF[rows])
            if drop:
                drop.clear_(out.mul_(drop.scale))
        ctx.save_for_backward(hidden_BLF)
        ctx.drops = drops
        return out_XF.view(*hidden_BLF.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_BLF: Tensor) -> tuple[Tensor, None]:
        (hidden_BLF,) = ctx.saved_tensors
        grads, grad_XF = torch.empty_like(hidden_BLF), grad_BLF.flatten(0, -2)
        (a_XF, b_XF), (da_XF, db_XF) = (x.flatten(0, -2).chunk(2, dim=-1) for x in (hidden_BLF, grads))
        for rows, drop in zip_longest(pieces(b_XF), ctx.drops):
            a, grad = a_XF[rows], grad_XF[rows]
            if drop:
                grad = drop.clear_(grad * drop.scale)
            torch.mul(F.gelu(a), grad, out=db_XF[rows])
            torch.ops.aten.gelu_backward.grad_input(grad * b_XF[rows], a, grad_input=da_XF[rows])
        return grads, None
