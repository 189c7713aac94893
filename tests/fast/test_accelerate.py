"""Fast paths against the plain expressions that they stand for, forward and backward."""

import gc
import weakref
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_fixtures import make_transformer
from scalear.attention import Segment, attend, attend_segments
from scalear.dropout import Drop, dropout
from scalear.models.fused import code_losses, draw_drops, gated_gelu, modulated_norm, residual_norm
from scalear.models.lean import LeanLinear, lean_linear
from scalear.models.remade import remade
from scalear.models.split_heads import split_directions, split_heads
from torch import nn

from scalear.models import fused
from scalear.models.blocks import Place
from scalear.models.layers import attend_by_scale
from scalear.models.norms import add_and_modulate
from scalear.models.var_block import VARBlock
from scalear.scales import ScaleSchedule

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(fused, "_CACHED", 60)
    monkeypatch.setattr("scalear.attention._SCORES", 100)
    monkeypatch.setattr("scalear.models.fused._SMALL", 0)


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def compare(fast, slow, inputs: list[torch.Tensor]) -> None:
    """Values and gradients agree."""
    results = []
    for function in (fast, slow):
        out = function(*inputs)
        out = torch.cat([part.flatten() for part in out]) if isinstance(out, tuple) else out
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        results.append([out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)])
    atol = TOLERANCE[inputs[0].dtype]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=atol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_modulated_norm(dtype, centred, tokens):
    norm = F.layer_norm if centred else F.rms_norm
    compare(
        lambda x, shift, scale: modulated_norm(x, shift, scale, 1e-6, centred),
        lambda x, shift, scale: norm(x, (8,), eps=1e-6) * (1 + scale) + shift,
        tensors((3, 5, 8), (3, tokens, 8), (3, tokens, 8), dtype=dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_residual_norm(dtype, centred, tokens):
    norm = F.layer_norm if centred else F.rms_norm

    def plain(x: torch.Tensor, out: torch.Tensor, gate: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor):
        total = x + gate * out
        return total, norm(total, (8,), eps=1e-6) * (1 + scale) + shift

    shapes = [(3, 5, 8)] * 2 + [(3, tokens, 8)] * 3
    compare(lambda *args: residual_norm(*args, 1e-6, centred), plain, tensors(*shapes, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_code_losses(dtype):
    code_BL = torch.tensor([[0, 6, 2, 2, 5], [3, 3, 0, 1, 4]])
    compare(
        lambda logits: code_losses(logits, code_BL),
        lambda logits: F.cross_entropy(logits.mT, code_BL, reduction="none"),
        tensors((2, 5, 7), dtype=dtype),
    )


def test_code_losses_of_bfloat16_logits_are_those_of_the_same_numbers():
    (logits,), code_B = tensors((40, 7), dtype=torch.bfloat16), torch.arange(40) % 7
    loss_B = code_losses(logits, code_B)
    expected_B = F.cross_entropy(logits.float(), code_B, reduction="none")
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-6, atol=1e-6)
    (grad,), (expected,) = (torch.autograd.grad(loss.sum(), logits) for loss in (loss_B, expected_B))
    torch.testing.assert_close(grad, expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("wide", ["x", "gate", "none"])
def test_residual_norm_of_other_dtypes(wide):
    x, out, *modulation = [part.detach().bfloat16() for part in tensors((3, 5, 8), (3, 5, 8), *[(3, 1, 8)] * 3)]
    if wide == "x":
        x = x.float()
    elif wide == "gate":
        modulation[0] = modulation[0].float()
    total, normed = residual_norm(x, out, *modulation, 1e-6, centred=True)
    expected = x + modulation[0] * out
    assert total.dtype == expected.dtype and torch.equal(total, expected)
    expected = F.layer_norm(expected.float(), (8,), eps=1e-6) * (1 + modulation[2].float()) + modulation[1].float()
    torch.testing.assert_close(normed.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("autocast", [False, True])
def test_remade_results_are_not_kept_and_change_nothing(autocast):
    layer, kept, grads = LeanLinear(8, 8), [], []
    x, out, *modulation = tensors((3, 5, 8), (3, 5, 8), *[(3, 1, 8)] * 3, dtype=torch.float32)
    for make in (remade, lambda function, *args: nullcontext(function(*args))):
        kept.append(set())
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept[-1].add(t.data_ptr()) or t, lambda t: t):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                with make(add_and_modulate, nn.LayerNorm(8), x, out, *modulation) as (total, normed):
                    total = total + layer(normed)
        assert (normed.data_ptr() in kept[-1]) == (make is not remade)
        grads.append(torch.autograd.grad(total.square().sum(), [x, out, *modulation, layer.weight]))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_only_the_very_result_is_remade():
    (x,), weight = tensors((2, 8, 8)), torch.randn(2, 8, 8, dtype=torch.float64, requires_grad=True)
    grads = []
    for make in (remade, lambda function, *args: nullcontext(function(*args))):
        with make(torch.exp, x) as y:
            out = weight @ y.mT  # same place, same shape
        grads.append(torch.autograd.grad(out.square().sum(), [x, weight]))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def ones_and_their_memory() -> tuple[torch.Tensor, weakref.ref]:
    """A tensor, and what is dead as soon as nothing keeps it, autograd included."""
    array = np.ones(1, dtype=np.float32)
    return torch.from_numpy(array), weakref.ref(array)


def test_what_is_remade_is_freed_without_a_backward_pass():
    schedule = ScaleSchedule.parse("1,2")
    block = VARBlock(32, Place(0, 1, schedule), num_heads=2)
    ones, memory = ones_and_their_memory()
    out = block(torch.randn(1, 5, 32, requires_grad=True) * ones, torch.randn(1, 1, 32), schedule)
    del ones
    assert memory() is not None
    del out
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_checkpointed_blocks_keep_nothing_from_inside(checkpoint_blocks):
    transformer, memories = make_transformer("1,2", checkpoint_blocks=checkpoint_blocks), []

    def use(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        ones, memory = ones_and_their_memory()
        memories.append(memory)
        return out * ones

    for stack in transformer.stacks:
        for block in stack:
            block.attention.proj.register_forward_hook(use)
    out = transformer(torch.randn(2, 4, 4), torch.randn(2, 24), ScaleSchedule.parse("1,2"))
    gc.collect()
    assert [memory() is None for memory in memories] == [checkpoint_blocks] * 3
    out.sum().backward()


def test_gated_gelu():
    compare(gated_gelu, lambda x: F.gelu(x[..., :20]) * x[..., 20:], tensors((3, 5, 40)))


@pytest.mark.parametrize("num_turned", [0, 2])
def test_split_heads(num_turned):
    turn = torch.polar(torch.ones(5, dtype=torch.float64), torch.arange(5.0).double())[:, None].expand(5, 4)

    def plain(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = x.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        turned = torch.view_as_real(torch.view_as_complex(parts.unflatten(-1, (4, 2)).contiguous()) * turn).flatten(-2)
        return tuple(turned[i] if i < num_turned else parts[i] for i in range(3))

    compare(lambda x: split_heads(x, 2, 3, torch.view_as_real(turn), num_turned), plain, tensors((3, 5, 48)))


def test_split_directions():
    def plain(x: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = x.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return F.normalize(q, dim=-1) * length[:, None, None], F.normalize(k, dim=-1), v

    compare(split_directions, plain, tensors((3, 5, 48), (2,)))


@pytest.mark.parametrize("before", [None, F.gelu, gated_gelu])
def test_lean_linear(before):
    layer = nn.Linear(10, 4, dtype=torch.float64)
    (x,) = tensors((3, 5, 20 if before is gated_gelu else 10))
    compare(
        lambda x, *_: lean_linear(layer, x, before),
        lambda x, *_: layer(x if before is None else before(x)),
        [x, layer.weight, layer.bias],
    )


def test_lean_linear_casts_as_autocast_does():
    layer, (x,) = nn.Linear(10, 4), tensors((3, 5, 10), dtype=torch.float32)
    results = []
    for function in (layer, lambda x: lean_linear(layer, x)):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(x)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), [x, layer.weight, layer.bias])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_lean_linear_keeps_nothing_but_its_arguments():
    layer, kept = LeanLinear(10, 4), []
    hidden = torch.randn(3, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        lean_linear(layer, hidden, gated_gelu)
        with torch.autocast("cpu", torch.bfloat16):
            layer(hidden[:, :10])
    assert [(x.shape, x.dtype) for x in kept] == [
        ((3, 20), torch.float32),
        ((4, 10), torch.float32),
        ((3, 10), torch.bfloat16),
        ((4, 10), torch.float32),
    ]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scales", ["1,2,4", "3", "1,2,4,8,12"])  # in one product, alone, both
def test_attention_by_scale(scales, causal):
    schedule = ScaleSchedule.parse(scales)
    mask = schedule.block_causal_mask()
    mask = mask if causal else mask & mask.T
    compare(
        lambda q, k, v: attend_by_scale(q, k, v, schedule, causal, scale=0.3),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, scale=0.3),
        tensors(*[(2, 3, schedule.num_tokens, 8)] * 3),
    )


@pytest.mark.parametrize("num_queries, num_keys", [(5, 7), (40, 40), (9, 250)])
def test_attention(num_queries, num_keys):
    shapes = [(2, 3, length, 8) for length in (num_queries, num_keys, num_keys)]
    compare(attend, F.scaled_dot_product_attention, tensors(*shapes))


def test_segments_that_are_masked():
    bias = torch.zeros(4, 6, dtype=torch.float64).masked_fill(torch.ones(4, 6).triu(3) > 0, float("-inf"))
    segments = [Segment(slice(0, 4), slice(0, 6), bias), Segment(slice(4, 6), slice(2, 6))]

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        first = F.scaled_dot_product_attention(q[:, :, :4], k, v, bias)
        return torch.cat([first, F.scaled_dot_product_attention(q[:, :, 4:], k[:, :, 2:], v[:, :, 2:])], dim=2)

    compare(lambda q, k, v: attend_segments(q, k, v, segments), plain, tensors(*[(2, 3, 6, 8)] * 3))


def test_dropout_is_what_it_says():
    torch.manual_seed(0)
    (x,) = tensors((400, 301), dtype=torch.float32)
    out = dropout(x, 0.1, training=True)
    (grad,) = torch.autograd.grad(out.sum(), x)
    kept = grad != 0
    torch.testing.assert_close(out, torch.where(kept, x / 0.9, 0.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(grad[kept], torch.full_like(grad[kept], 1 / 0.9), rtol=1e-4, atol=0)
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.003)
    assert kept.float().mean(0).min() > 0.8 and kept.float().mean(1).min() > 0.8
    assert dropout(x, 0.1, training=False) is x and dropout(x, 0.0, training=True) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropped_numbers_are_zero_in_any_dtype(dtype):
    torch.manual_seed(0)
    drop = Drop(torch.Size((7, 9)), 0.5)
    assert torch.equal(drop.clear_(torch.ones(7, 9, dtype=dtype)).float(), drop.clear_(torch.ones(7, 9)))


@pytest.mark.parametrize("function", ["gated_gelu", "lean_linear", "attend"])
def test_backward_drops_what_forward_dropped(function):
    def run(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        if function == "attend":
            return attend(*inputs, dropout=0.3)
        drops = draw_drops(inputs[0], 0.3)
        return (
            gated_gelu(*inputs, drops)
            if function == "gated_gelu"
            else lean_linear(layer, *inputs, partial(gated_gelu, drops=drops))
        )

    layer = nn.Linear(12, 4, dtype=torch.float64)
    shapes = [(2, 2, 8, 3)] * 3 if function == "attend" else [(2, 3, 24)]  # several pieces, of few numbers
    torch.autograd.gradcheck(run, tensors(*shapes))
