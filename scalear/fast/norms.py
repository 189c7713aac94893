"""AdaLN on CPUs: norm, shift and scale in one pass over a few samples at a time.

Written plainly, these are a handful of operations on whole tensors, every one of which travels to memory and back, in
float32, and leaves its result behind for the backward pass. Here they go together, and the backward pass makes again
what is cheap.

Legend: B batch, L tokens, D width. Conditions are (B, 1, D) or (B, L, D).
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.fast.pieces import pieces, wide
from scalear.models.norms import AdaLN


def ada_ln(self: AdaLN, x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`AdaLN.forward`, in the dtype of the matrix product that follows."""
    if type(self.norm) not in (nn.RMSNorm, nn.LayerNorm) or self.norm.elementwise_affine:
        return AdaLN.forward(self, x_BLD, shift, scale)
    centred = isinstance(self.norm, nn.LayerNorm)
    return _AdaLN.apply(x_BLD, shift, scale, self.norm.eps, centred, _product_dtype(x_BLD))


def _product_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _sum_like(x: Tensor, like: Tensor) -> Tensor:
    """Sum over the tokens if `like` has one for all of them."""
    return x.sum(1, keepdim=True) if like.shape[1] == 1 else x


class _AdaLN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_BLD: Tensor, shift: Tensor, scale: Tensor, eps: float, centred: bool, dtype: torch.dtype
    ) -> Tensor:
        y_BLD = torch.empty(x_BLD.shape, dtype=dtype)
        for rows in pieces(x_BLD):
            y_BLD[rows] = _modulate(x_BLD[rows], shift[rows], scale[rows], eps, centred)
        ctx.save_for_backward(x_BLD, shift, scale)
        ctx.eps, ctx.centred = eps, centred
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, *parameters = ctx.saved_tensors
        dx_BLD, grads = torch.empty_like(x_BLD), [torch.empty_like(parameter) for parameter in parameters]
        for rows in pieces(x_BLD):
            dx_BLD[rows] = _modulate_backward(
                dy_BLD[rows], x_BLD[rows], *(part[rows] for part in (*parameters, *grads)), ctx.eps, ctx.centred
            )
        return dx_BLD, *grads, None, None, None


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float, centred: bool) -> Tensor:
    normed, *_ = _normalise(x, eps, centred)
    return torch.addcmul(shift.to(normed.dtype), normed, 1 + scale.to(normed.dtype))


def _modulate_backward(
    dy: Tensor, x: Tensor, shift: Tensor, scale: Tensor, dshift: Tensor, dscale: Tensor, eps: float, centred: bool
) -> Tensor:
    """Gradient of x; those of shift and scale are written."""
    normed, *moments = _normalise(x, eps, centred)
    grad = dy.to(normed.dtype)
    dshift.copy_(_sum_like(grad, shift))
    dscale.copy_(_sum_like(grad * normed, scale))
    return _normalise_backward(grad * (1 + scale.to(normed.dtype)), x, normed, *moments)


def _normalise(x: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """X over its root mean square or standard deviation, at least in float32; the mean taken off, the factor."""
    x = wide(x)
    if centred:
        return torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
    inverse = mean_square.add_(eps).rsqrt_()
    return x * inverse, None, inverse


def _normalise_backward(grad: Tensor, x: Tensor, normed: Tensor, mean: Tensor | None, inverse: Tensor) -> Tensor:
    if mean is not None:
        wanted = [True, False, False]
        layer_norm_backward = torch.ops.aten.native_layer_norm_backward
        return layer_norm_backward(grad, wide(x), x.shape[-1:], mean, inverse, None, None, wanted)[0]
    along = (grad * normed).sum(-1, keepdim=True).div_(-x.shape[-1])
    return torch.addcmul(grad, normed, along).mul_(inverse)
