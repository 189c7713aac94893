"""Mamba's selective scan without all states in memory, and by mamba-ssm's kernel where that is installed.

Every channel has a state of N numbers, each of which decays at its own rate. The states of all tokens would be N times
as large as the input, so they never exist at once: a chunk of tokens is expanded at a time, everything but the
recurrence itself in one go, and the backward pass expands it again from the state before it. Nothing is divided by
decays, so nothing can overflow.

Legend: B batch, L tokens, b l the rows and tokens that are expanded at a time, E channels, N numbers of state.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from scalear.models.mamba import Mamba

_CHUNK = 16  # tokens; for the backward pass one state is kept per chunk, in all N / 16 times as much as the input
_CACHED = 1 << 19  # elements of one tensor that are expanded at a time on a CPU


@torch.compiler.disable  # it would unroll every token
def scan(
    self: Mamba,
    x_BLE: Tensor,
    step_BLE: Tensor,
    rate_NE: Tensor,
    write_BLN: Tensor,
    read_BLN: Tensor,
    state_BNE: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """`Mamba.scan`. mamba-ssm's kernel starts from zeros and tells no last state: it is for training, not for steps."""
    inputs = _wide(x_BLE, step_BLE, rate_NE, write_BLN, read_BLN)
    if state_BNE is None:
        if x_BLE.is_cuda and (kernel := cuda_kernel()) is not None:
            return scan_by_kernel(kernel, *inputs), None
        state_BNE = inputs[0].new_zeros(len(x_BLE), *rate_NE.shape)
    return _Scan.apply(*inputs, state_BNE) if torch.is_grad_enabled() else _scan(*inputs, state_BNE)


@cache
def cuda_kernel() -> Callable | None:
    """`selective_scan_fn` of mamba-ssm, if installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def scan_by_kernel(kernel: Callable, *inputs: Tensor) -> Tensor:
    """The scan by mamba-ssm, which has tokens last, and channels before states."""
    return kernel(*(tensor.mT.contiguous() for tensor in inputs)).mT


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        starts: list[Tensor] = []
        result = _scan(*inputs, starts=starts)
        ctx.save_for_backward(*inputs[:5], *starts)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_BLE: Tensor, dstate_BNE: Tensor) -> tuple[Tensor, ...]:
        x_BLE, step_BLE, rate_NE, write_BLN, read_BLN, *starts = ctx.saved_tensors
        dx_BLE, dstep_BLE, dwrite_BLN, dread_BLN = map(torch.empty_like, (x_BLE, step_BLE, write_BLN, read_BLN))
        drate_NE, dstate_BNE = torch.zeros_like(rate_NE), dstate_BNE.clone()
        with torch.autocast(x_BLE.device.type, enabled=False):
            for chunk, rows, tokens in reversed(list(_pieces(x_BLE, rate_NE))):
                here = rows, tokens
                x, step, write, read, dy = _token_first(here, x_BLE, step_BLE, write_BLN, read_BLN, dy_BLE)
                decay, states = _expand(x, step, rate_NE, write, starts[chunk][rows])
                grad = read[..., None] * dy[:, :, None]  # of each state, through its own output,
                grad[-1] += dstate_BNE[rows]
                for d, next_d, factor in reversed(list(zip(grad, grad[1:], decay[1:], strict=False))):
                    d.addcmul_(factor, next_d)  # and through the state after it
                dstate_BNE[rows] = decay[0] * grad[0]
                dread_BLN[here] = _dot(dy, states[1:].mT).transpose(0, 1)
                dwrite_BLN[here] = _dot(step * x, grad.mT).transpose(0, 1)
                dinflow = _dot(write, grad)
                dexponent = grad.mul_(decay).mul_(states[:-1])
                drate_NE += (dexponent * step[:, :, None]).sum((0, 1))
                dx_BLE[here] = (dinflow * step).transpose(0, 1)
                dstep_BLE[here] = torch.addcmul((dexponent * rate_NE).sum(2), dinflow, x).transpose(0, 1)
        return dx_BLE, dstep_BLE, drate_NE, dwrite_BLN, dread_BLN, dstate_BNE


def _scan(
    x_BLE: Tensor,
    step_BLE: Tensor,
    rate_NE: Tensor,
    write_BLN: Tensor,
    read_BLN: Tensor,
    state_BNE: Tensor,
    starts: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and last state; `starts` receives the state before each chunk."""
    y_BLE, state_BNE = torch.empty_like(x_BLE), state_BNE.clone()
    with torch.autocast(x_BLE.device.type, enabled=False):
        for chunk, rows, tokens in _pieces(x_BLE, rate_NE):
            if starts is not None and len(starts) == chunk:
                starts.append(state_BNE.clone())
            x, step, write, read = _token_first((rows, tokens), x_BLE, step_BLE, write_BLN, read_BLN)
            _, states = _expand(x, step, rate_NE, write, state_BNE[rows])
            y_BLE[rows, tokens] = _dot(read, states[1:]).transpose(0, 1)
            state_BNE[rows] = states[-1]
    return y_BLE, state_BNE


def _expand(
    x_lbE: Tensor, step_lbE: Tensor, rate_NE: Tensor, write_lbN: Tensor, start_bNE: Tensor
) -> tuple[Tensor, Tensor]:
    """The decay before each token, (l, b, N, E), and the states, of which the first is the one before all tokens."""
    # Powers of two, because they take a CPU a third of the time of an exponential.
    decay = (step_lbE[:, :, None] * (rate_NE / math.log(2))).exp2_()
    states = decay.new_empty(len(decay) + 1, *start_bNE.shape)
    states[0] = start_bNE
    torch.mul((step_lbE * x_lbE)[:, :, None], write_lbN[..., None], out=states[1:])
    for state_bNE, next_bNE, decay_bNE in zip(states, states[1:], decay, strict=False):
        next_bNE.addcmul_(decay_bNE, state_bNE)
    return decay, states


def _dot(vector_lbX: Tensor, matrix_lbXY: Tensor) -> Tensor:
    return (vector_lbX[:, :, None] @ matrix_lbXY)[:, :, 0]


def _token_first(here: tuple[slice, slice], *tensors: Tensor) -> list[Tensor]:
    # Contiguous, so that what is expanded from them is, too.
    return [tensor[here].transpose(0, 1).contiguous() for tensor in tensors]


def _pieces(x_BLE: Tensor, rate_NE: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Number of the chunk, rows and tokens of what is expanded at a time, chunk by chunk; on CPUs it fits the cache."""
    batch, length, _ = x_BLE.shape
    num_rows = max(1, _CACHED // (_CHUNK * rate_NE.numel())) if x_BLE.device.type == "cpu" else batch
    for chunk, token in enumerate(range(0, length, _CHUNK)):
        for row in range(0, batch, num_rows):
            yield chunk, slice(row, row + num_rows), slice(token, token + _CHUNK)


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)
