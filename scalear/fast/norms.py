"""AdaLN on CPUs: norm, shift, scale, gate and residual sum in one pass over a few samples at a time.

Written plainly, these are a handful of operations on whole tensors, every one of which travels to memory and back, in
float32, and leaves its result behind for the backward pass. Here they go together, and the backward pass makes again
what is cheap.

Legend: B batch, L tokens, D width. Conditions are (B, 1, D) or (B, L, D).
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.fast.pieces import pieces, wide
from scalear.models.blocks import AdaLNBlock
from scalear.models.flow_blocks import CrossAttentionBlock, spread
from scalear.scales import ScaleSchedule

Norm = nn.RMSNorm | nn.LayerNorm


def ada_ln_block(
    self: AdaLNBlock, x_BLD: Tensor, cond: Tensor, schedule: ScaleSchedule, cache: object | None = None
) -> Tensor:
    """`AdaLNBlock.forward`."""
    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = self.modulation(cond).chunk(6, dim=-1)
    y_BLD = modulated_norm(self.norm, x_BLD, shift_1, scale_1)
    out_BLD = self.drop_path(self.mixer(y_BLD, schedule, cache))
    x_BLD, y_BLD = residual_norm(self.norm, x_BLD, out_BLD, gate_1, shift_2, scale_2)
    return x_BLD + gate_2 * self.drop_path(self.mlp(y_BLD))


def cross_attention_block(
    self: CrossAttentionBlock,
    x_BLE: Tensor,
    time_BKE: Tensor,
    state: tuple[Tensor, tuple[Tensor, Tensor]],
    schedule: ScaleSchedule,
) -> Tensor:
    """`CrossAttentionBlock.forward`."""
    cond_BLE, keys = state
    gate, scale, shift = spread(self.attention_modulation(nn.functional.silu(time_BKE)), schedule).chunk(3, dim=-1)
    x_BLE = x_BLE + gate * self.attention(modulated_norm(self.norm, x_BLE, shift, scale), schedule)
    x_BLE = x_BLE + self.cross_attention(self.query_norm(x_BLE), keys, schedule)
    both_BLE = nn.functional.silu(spread(time_BKE, schedule) + cond_BLE)
    gate, scale, shift = self.mlp_modulation(both_BLE).chunk(3, dim=-1)
    return x_BLE + gate * self.mlp(modulated_norm(self.norm, x_BLE, shift, scale))


def modulated_norm(norm: Norm, x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) (1 + scale) + shift, in the dtype of the matrix product that follows.

    Args:
        norm: Without a weight.
        x_BLD: The residual stream.
        shift: Of adaLN.
        scale: Of adaLN.
    """
    return _ModulatedNorm.apply(x_BLD, shift, scale, norm.eps, isinstance(norm, nn.LayerNorm), _product_dtype(x_BLD))


def residual_norm(
    norm: Norm, x_BLD: Tensor, out_BLD: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The residual sum x + gate out, and its `modulated_norm`. The sum is not kept for the backward pass.

    Returns:
        The sum, of the dtype that x + gate out has, and its norm, of that of the matrix product that follows.
    """
    centred = isinstance(norm, nn.LayerNorm)
    return _ResidualNorm.apply(x_BLD, out_BLD, gate, shift, scale, norm.eps, centred, _product_dtype(x_BLD))


def _product_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


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
