"""Linear layers that keep less for the backward pass.

Autograd keeps the input of a linear layer and, under autocast, a cast of its weight. The cast is quickly made again,
and so is an input that is an elementwise function of something that is kept anyway, like the activations in an MLP.

Legend: X any shape, I features in, O features out.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.models.fused import is_small

Before = Callable[[Tensor], Tensor]


def lean_linear(layer: nn.Linear, x_XI: Tensor, before: Before | None = None, bias_O: Tensor | None = None) -> Tensor:
    """layer(before(x)), where the backward pass does `before`, if x is large, and the cast of the weight once more.

    Args:
        layer: Its weight and bias are used.
        x_XI: Input; `before` may change its last axis.
        before: Elementwise, without randomness; nothing by default.
        bias_O: In place of the layer's.

    Returns:
        out_XO, of autocast's dtype where autocast is on.
    """
    bias_O = layer.bias if bias_O is None else bias_O
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(x_XI if before is None else before(x_XI), layer.weight, bias_O)
    device = x_XI.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_XI.dtype
    x_XI = x_XI.to(dtype)
    if before is not None and is_small(x_XI):
        x_XI, before = before(x_XI), None
    return _Lean.apply(x_XI, layer.weight, bias_O, before)


class LeanLinear(nn.Linear):
    """A linear layer that is called through `lean_linear`."""

    def forward(self, x_XI: Tensor) -> Tensor:
        return lean_linear(self, x_XI)


class _Lean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_XI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, before: Before | None
    ) -> Tensor:
        ctx.save_for_backward(x_XI, weight_OI)
        ctx.before = before
        given_XI = x_XI if before is None else before(x_XI)
        return F.linear(given_XI, weight_OI.to(x_XI.dtype), None if bias_O is None else bias_O.to(x_XI.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_XO: Tensor) -> tuple[Tensor | None, ...]:
        x_XI, weight_OI = ctx.saved_tensors
        dx_XI = dweight_OI = dbias_O = None
        if ctx.before is None:
            given_XI = x_XI
        else:
            x_XI = x_XI.detach().requires_grad_()
            with torch.enable_grad():
                given_XI = ctx.before(x_XI)
        grad_YO = grad_XO.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            dweight_OI = (grad_YO.mT @ given_XI.detach().flatten(0, -2)).to(weight_OI.dtype)
        if ctx.needs_input_grad[2]:
            dbias_O = grad_YO.sum(0)
        if ctx.needs_input_grad[0]:
            dx_XI = grad_XO @ weight_OI.to(grad_XO.dtype)
            if ctx.before is not None:
                (dx_XI,) = torch.autograd.grad(given_XI, x_XI, dx_XI)
        return dx_XI, dweight_OI, dbias_O, None
