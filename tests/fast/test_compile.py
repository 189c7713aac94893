"""torch.compile changes no results, and compiles a bounded number of graphs."""

import copy
from functools import partial

import pytest
import torch
from model_fixtures import make_code_model, make_model, randomise, seeded
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import cache_dir

from scalear.draws import SeededDraws
from scalear.fast.compile import compile_blocks
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.image_model import ImageModel
from scalear.models.mamba import MambaBlock
from scalear.models.per_token import PerTokenMLP
from scalear.scales import ScaleSchedule

pytestmark = pytest.mark.integration

MAKE = {
    "flowar": partial(make_model, sampling=FlowSolver(num_steps=3)),
    "flowar-cross": partial(make_model, cross_attention=True),
    "var": partial(make_code_model, "var"),
    "flexvar": partial(make_code_model, "flexvar"),
    "flexvar-mamba": partial(make_code_model, "flexvar", depths=[3], block=partial(MambaBlock, d_state=4)),
}
LISTS = ["1,2,4", "1,3,4", "1,4", "1,2,3,4,5,6", "2x3,3x4,4"]


class Counter:
    """A backend that counts the graphs that it is given, and remembers what they do."""

    def __init__(self, backend: str) -> None:
        self.count = 0
        self.operations: set[str] = set()
        self._backend = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]):
        self.count += 1
        self.operations |= {getattr(node.target, "__name__", str(node.target)) for node in graph.graph.nodes}
        return self._backend(graph, inputs)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def make(kind: str) -> ImageModel:
    model = MAKE[kind]()
    randomise(model.generator)
    return model


def train(model: ImageModel, scales: str = "1,2,4") -> list[Tensor]:
    """The loss and all gradients."""
    schedule, draws = ScaleSchedule.parse(scales), seeded(3)
    latent_BChw = draws.normal("latent", 4, *schedule.sizes[-1])
    model.zero_grad()
    loss = model.train().loss(latent_BChw, torch.tensor([0, 1, 2]), draws, schedule).total
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


def sample(model: ImageModel, scales: str = "1,2,4") -> list[Tensor]:
    """The content of every scale of two images."""
    draws, schedule = SeededDraws([(1, row) for row in range(2)]), ScaleSchedule.parse(scales)
    return list(model.eval().sample_scales(torch.tensor([0, 1]), draws, schedule, Guidance(3.0)))


def assert_same(compiled: list[Tensor], eager: list[Tensor]) -> None:
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("kind, graphs", [("flowar", 8), ("flowar-cross", 13), ("var", 4)])
def test_training_on_one_list_compiles_in_the_first_step_alone(kind, graphs):
    """Attention and tables of positions split the blocks; of FlowAR's, for one, into four graphs each."""
    model, backend = make(kind), Counter("aot_eager")
    eager = train(model)
    compile_blocks(model, backend)
    assert_same(train(model), eager)
    first = backend.count
    train(model)
    assert 0 < first == backend.count <= graphs
    # What is not traced, for whatever reason, is silently not compiled.
    own = {"layer_norm", "normalize"} if kind == "var" else {"rms_norm", "stack"}  # stack: turned pairs of channels
    assert {"linear", "gelu", "permute", *own} <= backend.operations


def test_blocks_share_their_graphs_whatever_their_depth_and_drop_path():
    counts = []
    for depth in (3, 12):
        torch._dynamo.reset()
        model, backend = make_code_model("var", depths=[depth], block={"drop_path": 0.3}), Counter("eager")
        compile_blocks(model, backend)
        train(model)
        counts.append(backend.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("kind", ["flexvar", "flexvar-mamba"])
def test_random_lists_are_compiled_twice_at_most(kind):
    model, backend = make(kind), Counter("eager")
    eager = [train(model, scales) for scales in LISTS]
    compile_blocks(model, backend)
    counts = []
    for scales, expected in zip(LISTS, eager, strict=True):
        assert_same(train(model, scales), expected)
        counts.append(backend.count)
    assert 0 < counts[0] < counts[1] == counts[-1]


@pytest.mark.parametrize("kind", ["flowar", "flexvar"])
def test_sampling_compiles_one_token_and_any_number(kind):
    model, backend = make(kind), Counter("eager")
    lists = LISTS if kind == "flexvar" else LISTS[:1]
    eager = [sample(model, scales) for scales in lists]
    compile_blocks(model, backend)
    assert_same(sample(model, lists[0]), eager[0])
    first = backend.count
    for scales, expected in zip(lists, eager, strict=True):
        assert_same(sample(model, scales), expected)
    assert 0 < first == backend.count


def test_a_network_per_token_is_compiled_too():
    schedule, backend = ScaleSchedule.parse("1,2"), Counter("eager")
    network = randomise(PerTokenMLP(4, 24, schedule, dim=16, depth=3))
    inputs = torch.randn(2, 5, 4), torch.rand(2, 2), torch.randn(2, 5, 16), schedule
    eager = network(*inputs)
    compile_blocks(network, backend)
    assert_same([network(*inputs)], [eager])
    assert backend.count == 1


def test_names_of_weights_stay_and_copies_are_not_compiled():
    model, backend = make_code_model("var"), Counter("eager")
    names = list(model.state_dict())
    compile_blocks(model, backend)
    train(copy.deepcopy(model))
    assert backend.count == 0
    train(model)
    assert backend.count > 0 and list(model.state_dict()) == names


def test_what_is_compiled_is_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")  # both, so that nothing of this is left behind
    compile_blocks(make_code_model("var"))
    assert cache_dir() == str(tmp_path / "scalear" / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    compile_blocks(make_code_model("var"))
    assert cache_dir() == str(tmp_path / "mine")
