"""The scan of Mamba against the plain recurrence, and by mamba-ssm's kernel."""

import sys
from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scalear.fast import scan
from scalear.fast.scan import cuda_kernel, scan_by_kernel
from scalear.models.mamba import Mamba

LAYER = Mamba(8, 0, 4, 2, 1.0)


def scan_inputs(length: int, batch: int = 3, channels: int = 5, states: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, channels)] * 2 + [(states, channels)] + [(batch, length, states)] * 2
    drawn = [torch.randn(shape, dtype=torch.double, generator=generator) for shape in [*shapes, (batch, *shapes[2])]]
    drawn[1], drawn[2] = drawn[1].exp(), -drawn[2].exp()
    return [tensor.requires_grad_() for tensor in drawn]


@pytest.mark.parametrize("cached", [1, 1 << 19], ids=["row by row", "all rows"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 50])
def test_the_scan_is_the_recurrence_forward_and_backward(length, cached, monkeypatch):
    monkeypatch.setattr(scan, "_CACHED", cached)
    tensors = scan_inputs(length)
    results = []
    for out in (LAYER.scan(*tensors), scan.scan(LAYER, *tensors)):
        total = sum((part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in out)
        results.append([*out, *torch.autograd.grad(total, tensors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    from_zeros = [LAYER.scan(*tensors[:5], None), scan.scan(LAYER, *tensors[:5], None)]
    for one, other in zip(*from_zeros, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(scan.scan(LAYER, *tensors)[0], results[0][0], rtol=1e-11, atol=1e-11)


def test_no_decay_is_too_strong_and_half_precision_is_scanned_in_float32():
    x, step, rate, write, read, _ = (tensor.detach().float() for tensor in scan_inputs(40))
    step = step.fill_(50.0).requires_grad_()
    out, _ = scan.scan(LAYER, x, step, rate * 100, write, read, None)
    assert out.isfinite().all() and torch.autograd.grad(out.sum(), step)[0].isfinite().all()
    torch.testing.assert_close(out, LAYER.scan(x, step, rate * 100, write, read, None)[0])
    halves = [tensor.bfloat16() for tensor in (x, step / 100, rate, write, read)]
    expected, _ = LAYER.scan(*(tensor.double() for tensor in halves), None)
    for function in (LAYER.scan, lambda *inputs: scan.scan(LAYER, *inputs)):
        with torch.autocast("cpu", torch.bfloat16):
            out, _ = function(*halves, None)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_the_states_of_all_tokens_never_exist_at_once(monkeypatch):
    monkeypatch.setattr(scan, "_CACHED", 1)
    tensors = scan_inputs(320, batch=4, channels=32, states=16)
    with Largest() as largest:
        torch.autograd.grad(scan.scan(LAYER, *tensors[:5], None)[0].sum(), tensors[:5])
    assert largest.elements < 4 * 320 * 32 * 16 / 8


def test_mamba_ssm_gets_its_own_layout(monkeypatch):
    """Its documented shapes: u, delta (B, E, L), A (E, N), B and C (B, N, L)."""

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        decay = torch.exp(torch.einsum("bel,en->beln", delta, A))
        state, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
        for t in range(u.shape[2]):
            state = decay[:, :, t] * state + torch.einsum("be,be,bn->ben", delta[:, :, t], u[:, :, t], B[:, :, t])
            outputs.append(torch.einsum("ben,bn->be", state, C[:, :, t]))
        assert all(tensor.is_contiguous() for tensor in (u, delta, A, B, C))
        return torch.stack(outputs, dim=-1)

    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    kernel = cuda_kernel.__wrapped__()
    assert kernel is selective_scan_fn
    tensors = [tensor.detach().float() for tensor in scan_inputs(9)[:5]]
    torch.testing.assert_close(scan_by_kernel(kernel, *tensors), LAYER.scan(*tensors, None)[0])
