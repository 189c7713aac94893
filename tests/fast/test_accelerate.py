"""Every fast way gives the results and gradients of the plain one that it stands for."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_fixtures import make_code_model, make_model, make_network, randomise
from torch import Tensor, nn

from scalear.fast.accelerate import EVERYWHERE, ON_CPU, accelerate
from scalear.fast.attention import Segment, attend_segments
from scalear.fast.dropout import Drop
from scalear.fast.mlp import gated_gelu
from scalear.models.attention import Rotary, RotaryAttention, ScaledDotProduct
from scalear.models.blocks import FlowARBlock, Place
from scalear.models.layers import GatedMlp
from scalear.models.mamba import Mamba
from scalear.models.norms import AdaLN, rms_norm
from scalear.models.var_block import VARAttention, VARBlock
from scalear.scales import ScaleSchedule
from scalear.tokenizers.conv import AttentionBlock

DIM, NUM_HEADS = 16, 2
SHORT = ScaleSchedule.parse("1,2,3")
PLACE = Place(1, 2, SHORT)
RMS_NORM = rms_norm(DIM, affine=False)
LAYER_NORM = nn.LayerNorm(DIM, eps=1e-6, elementwise_affine=False)


@pytest.fixture
def small_pieces(monkeypatch):
    """So that even small tensors are handled in several."""
    monkeypatch.setattr("scalear.fast.pieces._CACHED", 60)
    monkeypatch.setattr("scalear.fast.attention._SCORES", 100)
    monkeypatch.setattr("scalear.fast.scan._CACHED", 1)


@dataclass
class Case:
    """A method that has a fast way, and a call of it.

    Attributes:
        plain: The method.
        make: Makes the module.
        shapes: Of the tensors that the call takes.
        call: Calls the method with these tensors.
        dtype: Of the comparison; the plain way of some computes in float32.
    """

    plain: Callable
    make: Callable[[], nn.Module]
    shapes: list[tuple[int, ...]]
    call: Callable = lambda method, *tensors: method(*tensors)
    dtype: torch.dtype = torch.float64

    def __repr__(self) -> str:
        return self.plain.__qualname__

    def results(self, module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        """Of the module's own method: values, and gradients of tensors and weights."""
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in self.shapes]
        out = self.call(getattr(module, self.plain.__name__), *inputs)
        parts = list(out) if isinstance(out, tuple) else [out]
        weights = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in parts]
        total = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        grads = torch.autograd.grad(total, [*inputs, *parameters], allow_unused=True)
        return [*parts, *(grad for grad in grads if grad is not None)]


def rotary_attention(causal: bool = True) -> nn.Module:
    return RotaryAttention(DIM, NUM_HEADS, Rotary(8, 3), causal, dropout=0.2)


def var_attention(normalise: bool = True) -> nn.Module:
    return VARAttention(DIM, NUM_HEADS, normalise, 0.1)


def dot_product(scales: str, causal: bool, earlier: int = 0) -> Case:
    """With the tokens of a schedule, whose keys come after those of earlier ones."""
    schedule = ScaleSchedule.parse(scales)
    queries, keys = ((3, NUM_HEADS, schedule.num_tokens + count, 8) for count in (0, earlier))

    def call(method: Callable, *qkv: Tensor) -> Tensor:
        return method(*qkv, schedule)

    return Case(ScaledDotProduct.forward, lambda: ScaledDotProduct(causal, scale=0.3), [queries, keys, keys], call)


def turned(num_parts: int, num_turned: int) -> Case:
    rotary = Rotary(8, 3)

    def call(method: Callable, x_BLX: Tensor) -> tuple[Tensor, ...]:
        return method(x_BLX, rotary.turns(SHORT, x_BLX.device), num_parts, num_turned)

    return Case(Rotary.split_heads, lambda: rotary, [(3, SHORT.num_tokens, num_parts * DIM)], call)


def ada_ln(norm: nn.Module, modulation_tokens: int) -> Case:
    """With a matrix product that follows."""
    modulation = 3, modulation_tokens, DIM

    def call(method: Callable, *inputs: Tensor) -> Tensor:
        return F.linear(method(*inputs), torch.eye(DIM, dtype=inputs[0].dtype))

    return Case(AdaLN.forward, lambda: AdaLN(norm), [(3, SHORT.num_tokens, DIM), modulation, modulation], call)


def mamba() -> nn.Module:
    return Mamba(DIM, 0, 4, 2, 1.0)


def scanned(method: Callable, x: Tensor, step: Tensor, rate: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    return method(x, F.softplus(step), -rate.exp(), *others, *[None] * (3 - len(others)))


_SCAN = [(3, 20, 5), (3, 20, 5), (4, 5), (3, 20, 4), (3, 20, 4)]
_LISTS = "1,2,4", "3", "1,2,4,8,12"  # in one product, alone, both
_FLOAT32 = {"dtype": torch.float32}
CASES = [
    *(dot_product(scales, causal) for scales in _LISTS for causal in (True, False)),
    *(dot_product(scales, causal, earlier=5) for scales in ("3", "2,3") for causal in (True, False)),
    Case(AttentionBlock.attend, lambda: AttentionBlock(32), [(2, 1, 15, 32)] * 3),
    turned(num_parts=3, num_turned=2),
    turned(num_parts=1, num_turned=1),
    Case(VARAttention.split_directions, var_attention, [(3, SHORT.num_tokens, 3 * DIM)], **_FLOAT32),
    *(ada_ln(norm, tokens) for norm in (RMS_NORM, LAYER_NORM) for tokens in (1, SHORT.num_tokens)),
    Case(GatedMlp.forward, lambda: GatedMlp(DIM, dropout=0.2), [(3, 5, DIM)]),
    Case(nn.Dropout.forward, lambda: nn.Dropout(0.2), [(3, 5)]),
    Case(Mamba.scan, mamba, _SCAN, scanned),
    Case(Mamba.scan, mamba, [*_SCAN, (3, 4, 5)], scanned),
]


def test_every_fast_way_is_compared_here():
    assert {case.plain for case in CASES} == {*ON_CPU, *EVERYWHERE}


def plain_and_fast(case: Case, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The same random module twice, in evaluation mode."""
    plain = randomise(case.make(), std=0.3).to(dtype).eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    assert case.plain.__name__ in vars(fast) and case.plain.__name__ not in vars(plain)
    return plain, fast


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_results_and_gradients_are_those_of_the_plain_way(case, small_pieces):
    tolerance = 1e-11 if case.dtype == torch.float64 else 1e-5
    results = [case.results(module, case.dtype) for module in plain_and_fast(case, case.dtype)]
    assert len(results[0]) > len(case.shapes)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_autocast_rounds_about_as_much_as_the_plain_way(case):
    plain, fast = plain_and_fast(case, torch.float32)
    exact = case.results(plain, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = [case.results(module, torch.float32) for module in (plain, fast)]
    for expected, *results in zip(exact, *rounded, strict=True):
        errors = [(result.float() - expected).norm() for result in results]
        assert errors[1] <= 3 * errors[0] + 1e-5 * expected.norm()


@pytest.mark.parametrize("make", [rotary_attention, var_attention])
@torch.no_grad()
def test_scale_by_scale_with_a_cache(make):
    plain = randomise(make(), std=0.3).eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x_BLD, results = torch.randn(3, SHORT.num_tokens, DIM), []
    for module in (plain, fast):
        cache = module.make_cache(SHORT.num_tokens)
        parts = enumerate(SHORT.split(x_BLD))
        results.append(torch.cat([module(x_BlD, SHORT.scale(k), cache) for k, x_BlD in parts], dim=1))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_segments_that_are_masked(small_pieces):
    bias = torch.zeros(4, 6, dtype=torch.float64).masked_fill(torch.ones(4, 6).triu(3) > 0, float("-inf"))
    segments = [Segment(slice(0, 4), slice(0, 6), bias), Segment(slice(4, 6), slice(2, 6))]
    q, k, v = (torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    first = F.scaled_dot_product_attention(q[:, :, :4], k, v, bias)
    plain = torch.cat([first, F.scaled_dot_product_attention(q[:, :, 4:], k[:, :, 2:], v[:, :, 2:])], dim=2)
    fast, weight = attend_segments(q, k, v, segments), torch.randn(plain.shape, dtype=torch.float64)
    torch.testing.assert_close(fast, plain)
    grads = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (fast, plain)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("norm", [nn.RMSNorm(DIM), nn.LayerNorm(DIM), nn.Softmax(-1)])
def test_norms_of_other_kinds_stay_plain(norm):
    plain = AdaLN(randomise(norm))
    inputs = torch.randn(3, 2, 5, DIM).unbind()
    expected = plain(*inputs)
    assert torch.equal(fast(plain)(*inputs), expected)


def fast(module: nn.Module) -> nn.Module:
    """The module itself, accelerated."""
    accelerate(module)
    return module


def test_dropout_is_what_it_says():
    torch.manual_seed(0)
    x = torch.randn(400, 301, requires_grad=True)
    out = fast(nn.Dropout(0.1))(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    kept = grad != 0
    torch.testing.assert_close(out, torch.where(kept, x / 0.9, 0.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(grad[kept], torch.full_like(grad[kept], 1 / 0.9), rtol=1e-4, atol=0)
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.003)
    assert kept.float().mean(0).min() > 0.8 and kept.float().mean(1).min() > 0.8
    assert fast(nn.Dropout(0.1)).eval()(x) is x and fast(nn.Dropout(0.0))(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropped_numbers_are_zero_in_any_dtype(dtype):
    torch.manual_seed(0)
    drop = Drop(torch.Size((7, 9)), 0.5)
    assert torch.equal(drop.clear_(torch.ones(7, 9, dtype=dtype)).float(), drop.clear_(torch.ones(7, 9)))


def test_activations_and_attention_weights_are_dropped_and_what_is_left_is_scaled():
    torch.manual_seed(0)
    hidden = torch.randn(50, 40, 20)
    out, kept = gated_gelu(hidden, 0.5), gated_gelu(hidden)
    torch.testing.assert_close(out, torch.where(out != 0, 2 * kept, 0.0))
    assert (out != 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    q, k, ones = torch.randn(2, 3, 100, 8), torch.randn(2, 3, 100, 8), torch.ones(2, 3, 100, 1)
    sums = fast(ScaledDotProduct(causal=False, dropout=0.5))(q, k, ones, ScaleSchedule.parse("10"))
    assert sums.std() > 0.1 and sums.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("prob", [0.0, 0.3])
@pytest.mark.parametrize("what", ["attention", "mlp"])
def test_what_is_dropped_is_set_where_it_is_in_the_plain_way(what, prob):
    """On weights and output of attention, on hidden units and output of the MLP: as much noise either way."""
    make = rotary_attention if what == "attention" else partial(GatedMlp, DIM)
    x_BLD, rest = torch.randn(200, SHORT.num_tokens, DIM), (SHORT,) if what == "attention" else ()
    plain = randomise(RotaryAttention(DIM, 2, Rotary(8, 3), True, dropout=prob) if rest else make(prob), std=0.3)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = plain.eval()(x_BLD, *rest)
        plain_noise, fast_noise = (module.train()(x_BLD, *rest) - expected for module in (plain, fast))
    assert (plain_noise.std() > 0.05) == (prob > 0)
    assert fast_noise.std().item() == pytest.approx(plain_noise.std().item(), rel=0.05, abs=1e-5)


@pytest.mark.parametrize("what", ["dropout", "mlp", "attention"])
def test_backward_drops_what_forward_dropped(what, small_pieces):
    schedule = ScaleSchedule.parse("1,2")

    def run(*inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        if what == "attention":
            return fast(ScaledDotProduct(causal=True, dropout=0.3))(*inputs, schedule)
        return gated_gelu(*inputs, 0.3) if what == "mlp" else fast(nn.Dropout(0.3))(*inputs)

    shapes = [(2, 2, 5, 3)] * 3 if what == "attention" else [(2, 3, 24)]  # several pieces, of few numbers
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    torch.autograd.gradcheck(run, inputs, fast_mode=True)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("cross_attention", [False, True])
@torch.no_grad()
def test_copies_are_fast_and_compute_with_their_own_weights(cross_attention, how):
    network = randomise(make_network(cross_attention=cross_attention))
    accelerate(network)
    copied = COPIES[how](network)
    assert [vars(one).keys() for one in copied.modules()] == [vars(one).keys() for one in network.modules()]
    x, hidden, noise_level = torch.randn(2, SHORT.num_tokens, 4), torch.randn(2, SHORT.num_tokens, 24), torch.rand(2, 3)

    def run(module: nn.Module) -> Tensor:
        return module(x, noise_level, module.prepare(hidden, SHORT), SHORT)

    before = run(network)
    assert torch.equal(run(copied), before)
    for block in copied.blocks:
        randomise(block, std=0.5)
    assert torch.equal(run(network), before) and not torch.allclose(run(copied), before)


def test_a_subclass_keeps_its_own_methods():
    class Own(GatedMlp):
        def forward(self, x_BLD: Tensor) -> Tensor:
            return -super().forward(x_BLD)

    own, plain, x_BLD = Own(DIM), GatedMlp(DIM), torch.randn(2, 3, DIM)
    plain.load_state_dict(own.state_dict())
    accelerate(own)
    assert "forward" not in vars(own) and torch.equal(own(x_BLD), -plain(x_BLD))


@pytest.mark.parametrize("make", [partial(make_model, cross_attention=True), partial(make_code_model, "var")])
def test_names_of_weights_stay(make):
    assert list(make(fast=True).state_dict()) == list(make(fast=False).state_dict())


@pytest.fixture
def refusing(monkeypatch):
    """Fast ways that nobody may take."""
    for plain in ON_CPU:
        monkeypatch.setitem(ON_CPU, plain, lambda *args: pytest.fail("took the fast way"))


PARTS = [
    (lambda: FlowARBlock(DIM, PLACE, NUM_HEADS, dropout=0.2), [(3, SHORT.num_tokens, DIM), (3, 1, DIM)], (SHORT,)),
    (lambda: VARBlock(DIM, PLACE, NUM_HEADS), [(3, SHORT.num_tokens, DIM), (3, 1, DIM)], (SHORT,)),
    (lambda: AttentionBlock(32), [(2, 32, 3, 5)], ()),
]


@pytest.mark.integration
@pytest.mark.parametrize("make, shapes, rest", PARTS)
def test_graphs_take_the_plain_way(make, shapes, rest, refusing):
    torch._dynamo.reset()
    module = randomise(make()).eval()
    inputs = [torch.randn(shape) for shape in shapes]
    expected = module(*inputs, *rest)
    accelerate(module)
    with pytest.raises(pytest.fail.Exception, match="took the fast way"):
        module(*inputs, *rest)
    module.compile(backend="eager")
    torch.testing.assert_close(module(*inputs, *rest), expected)


@pytest.mark.parametrize("make, shapes, rest", PARTS)
def test_other_devices_take_the_plain_way(make, shapes, rest, refusing):
    module = make().to("meta")
    accelerate(module)
    assert module(*(torch.empty(shape, device="meta") for shape in shapes), *rest).shape == shapes[0]
