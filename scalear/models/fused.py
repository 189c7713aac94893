"""What stands between the matrix products of a block, each as one step: less memory traffic, fewer tensors kept.

Written plainly, each of these is a handful of operations on whole tensors, every one of which travels to memory and
back, in float32, and leaves its result behind for the backward pass. Here a few samples at a time, which fit the cache,
go through all of them, and the backward pass makes again what is cheap. On other devices, and under torch.compile,
which fuses by itself, the plain expressions are used.

Legend: B batch, L tokens, D width, F hidden width of an MLP, V codes, X any shape.
Conditions are (B, 1, D) or (B, L, D).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.dropout import Drop

_CACHED = 1 << 20  # elements of one tensor that are handled at a time
_SMALL = 1 << 21  # elements of a tensor whose memory does not matter
_all_plain: ContextVar[bool] = ContextVar("_all_plain", default=False)


def modulated_norm(x_BLD: Tensor, shift: Tensor, scale: Tensor, eps: float, centred: bool = False) -> Tensor:
    """norm(x) (1 + scale) + shift, in the dtype of the matrix product that follows.

    Args:
        x_BLD: The residual stream.
        shift: Of adaLN.
        scale: Of adaLN.
        eps: Of the norm.
        centred: Layer norm instead of RMS norm, both without a weight.
    """
    if plainly(x_BLD):
        norm = F.layer_norm if centred else F.rms_norm
        return torch.addcmul(shift, norm(x_BLD, x_BLD.shape[-1:], eps=eps), 1 + scale)
    return _ModulatedNorm.apply(x_BLD, shift, scale, eps, centred, _product_dtype(x_BLD))


def residual_norm(
    x_BLD: Tensor, out_BLD: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float, centred: bool = False
) -> tuple[Tensor, Tensor]:
    """The residual sum x + gate out, and its `modulated_norm`. The sum is not kept for the backward pass.

    Args:
        x_BLD: The residual stream.
        out_BLD: What is added to it.
        gate: Of adaLN.
        shift: Of adaLN.
        scale: Of adaLN.
        eps: As in `modulated_norm`.
        centred: As in `modulated_norm`.

    Returns:
        The sum, of the dtype that x + gate out has, and its norm, of that of the matrix product that follows.
    """
    if plainly(x_BLD):
        sum_BLD = x_BLD + gate * out_BLD
        return sum_BLD, modulated_norm(sum_BLD, shift, scale, eps, centred)
    return _ResidualNorm.apply(x_BLD, out_BLD, gate, shift, scale, eps, centred, _product_dtype(x_BLD))


def gated_gelu(hidden_BLF: Tensor, drops: Sequence[Drop] = ()) -> Tensor:
    """gelu(a) b of the two halves a, b of the last axis, without what `drops`, of `draw_drops`, drop."""
    if plainly(hidden_BLF):
        a, b = hidden_BLF.chunk(2, dim=-1)
        return F.gelu(a) * b
    return _GatedGelu.apply(hidden_BLF, drops)


def draw_drops(hidden_BLF: Tensor, prob: float) -> list[Drop]:
    """What `gated_gelu` is to drop each time it is called with them, where it is not plain."""
    half_XF = hidden_BLF.flatten(0, -2).chunk(2, dim=-1)[0]
    return [Drop(half_XF[rows].shape, prob) for rows in pieces(half_XF)]


def code_losses(logits_XV: Tensor, code_X: Tensor) -> Tensor:
    """Cross entropy of each token in nats, at least in float32. Keeps the logits alone for the backward pass.

    Args:
        logits_XV: Of the codes.
        code_X: The right ones.
    """
    logits_YV, code_Y = logits_XV.flatten(0, -2), code_X.flatten()
    if plainly(logits_XV):
        return F.cross_entropy(wide(logits_YV), code_Y, reduction="none").view_as(code_X)
    return _CodeLosses.apply(logits_YV, code_Y).view_as(code_X)


def plainly(x: Tensor) -> bool:
    """Whether the plain expression is the better one, or asked for by `all_plain`."""
    return x.device.type != "cpu" or torch.compiler.is_compiling() or _all_plain.get()


@contextmanager
def all_plain() -> Iterator[None]:
    """Inside, plain expressions are used everywhere: to compare with."""
    token = _all_plain.set(True)
    try:
        yield
    finally:
        _all_plain.reset(token)


def is_small(x: Tensor) -> bool:
    """Whether keeping x costs less than making it again."""
    return x.numel() <= _SMALL


def _product_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def pieces(x: Tensor) -> Iterator[slice]:
    """Runs along the first axis that fit the cache."""
    step = max(1, _CACHED // max(1, x[:1].numel()))
    return (slice(first, first + step) for first in range(0, len(x), step))


def _sum_like(x: Tensor, like: Tensor) -> Tensor:
    """Sum over the tokens if `like` has one for all of them."""
    return x.sum(1, keepdim=True) if like.shape[1] == 1 else x


class _ModulatedNorm(torch.autograd.Function):
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


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_BLD: Tensor,
        out_BLD: Tensor,
        gate: Tensor,
        shift: Tensor,
        scale: Tensor,
        eps: float,
        centred: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        dtype_of_sum = torch.promote_types(torch.result_type(x_BLD, out_BLD), gate.dtype)
        sum_BLD = torch.empty(x_BLD.shape, dtype=dtype_of_sum)
        y_BLD = torch.empty(x_BLD.shape, dtype=dtype)
        for rows in pieces(x_BLD):
            torch.add(x_BLD[rows], gate[rows] * out_BLD[rows], out=sum_BLD[rows])
            y_BLD[rows] = _modulate(sum_BLD[rows], shift[rows], scale[rows], eps, centred)
        ctx.save_for_backward(x_BLD, out_BLD, gate, shift, scale)
        ctx.eps, ctx.centred = eps, centred
        return sum_BLD, y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dsum_BLD: Tensor, dy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, out_BLD, gate, *parameters = ctx.saved_tensors
        dx_BLD, dout_BLD, dgate = (torch.empty_like(part) for part in (x_BLD, out_BLD, gate))
        grads = [torch.empty_like(parameter) for parameter in parameters]
        for rows in pieces(x_BLD):
            total = x_BLD[rows] + gate[rows] * out_BLD[rows]
            grad = _modulate_backward(
                dy_BLD[rows], total, *(part[rows] for part in (*parameters, *grads)), ctx.eps, ctx.centred
            )
            grad = dsum_BLD[rows] + grad
            dx_BLD[rows] = grad
            dgate[rows] = _sum_like(grad * out_BLD[rows], gate)
            torch.mul(grad, gate[rows], out=dout_BLD[rows])
        return dx_BLD, dout_BLD, dgate, *grads, None, None, None


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


class _CodeLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, logits_YV: Tensor, code_Y: Tensor) -> Tensor:
        right_Y = wide(logits_YV.gather(1, code_Y[:, None])[:, 0])
        log_total_Y = torch.empty_like(right_Y)
        for rows in pieces(logits_YV):
            torch.logsumexp(wide(logits_YV[rows]), -1, out=log_total_Y[rows])
        ctx.save_for_backward(logits_YV, code_Y, log_total_Y)
        return log_total_Y - right_Y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_Y: Tensor) -> tuple[Tensor, None]:
        logits_YV, code_Y, log_total_Y = ctx.saved_tensors
        dlogits_YV = torch.empty_like(logits_YV)
        for rows in pieces(logits_YV):
            grad = (wide(logits_YV[rows]) - log_total_Y[rows, None]).exp_()
            grad[torch.arange(len(grad)), code_Y[rows]] -= 1
            torch.mul(grad, grad_Y[rows, None], out=dlogits_YV[rows])
        return dlogits_YV, None


def wide(x: Tensor) -> Tensor:
    """As float32, or as it is if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
