"""torch.compile changes no results, and compiles a bounded number of graphs."""

import copy
import shutil
from functools import partial

import pytest
import torch
from cli_fixtures import run
from model_fixtures import make_code_generator, make_generator, randomise
from scalear.models.compiled import compile_blocks
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import cache_dir

from scalear.draws import SeededDraws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.models.blocks import Place
from scalear.models.generator import Generator
from scalear.models.mamba import MambaBlock
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling


def make_mamba() -> Generator:
    generator = make_code_generator("flexvar")
    places = [Place(layer, 3, generator.schedule) for layer in range(3)]
    generator.transformer.stacks[0] = nn.ModuleList([MambaBlock(24, place, d_state=4) for place in places])
    return generator


MAKE = {
    "flowar": make_generator,
    "flowar-cross": partial(make_generator, cross_attention=True),
    "var": partial(make_code_generator, "var"),
    "flexvar": partial(make_code_generator, "flexvar"),
    "flexvar-mamba": make_mamba,
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


def train(generator: Generator, scales: str = "1,2,4") -> list[Tensor]:
    """The loss and all gradients."""
    schedule = ScaleSchedule.parse(scales)
    draws = SeededDraws([(0, row) for row in range(3)], torch.device("cpu"))
    latent_BChw = draws.normal("latent", 4, *schedule.sizes[-1])
    generator.zero_grad()
    loss = generator.train().loss(generator.pyramid.build(latent_BChw, schedule), torch.tensor([0, 1, 2]), draws).total
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in generator.parameters() if weight.grad is not None)]


def sample(generator: Generator, scales: str = "1,2,4") -> list[Tensor]:
    """The content of every scale of two images."""
    device = next(generator.parameters()).device
    draws = SeededDraws([(1, row) for row in range(2)], device)
    sampling = TokenSampling() if hasattr(generator.head, "vocab_size") else FlowSolver(num_steps=3)
    schedule = ScaleSchedule.parse(scales)
    return list(
        generator.eval().generate_scales(torch.tensor([0, 1], device=device), draws, sampling, Guidance(3.0), schedule)
    )


def assert_same(compiled: list[Tensor], eager: list[Tensor]) -> None:
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("kind", ["flowar-cross", "var"])
def test_training_on_one_list_compiles_in_the_first_step_alone(kind):
    generator, backend = randomise(MAKE[kind]()), Counter("aot_eager")
    eager = train(generator)
    compile_blocks(generator, backend)
    assert_same(train(generator), eager)
    first = backend.count
    train(generator)
    assert 0 < first == backend.count
    # What is not traced, for whatever reason, is silently not compiled.
    assert {"linear", "gelu", "unflatten", "layer_norm" if kind == "var" else "rms_norm"} <= backend.operations


def test_blocks_share_their_graphs_whatever_their_depth_and_drop_path():
    counts = []
    for depth in (3, 12):
        torch._dynamo.reset()
        generator, backend = make_code_generator("var", depths=[depth], block={"drop_path": 0.3}), Counter("eager")
        compile_blocks(generator, backend)
        train(generator)
        counts.append(backend.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("kind", ["flexvar", "flexvar-mamba"])
def test_random_lists_are_compiled_twice_at_most(kind):
    generator, backend = randomise(MAKE[kind]()), Counter("eager")
    eager = [train(generator, scales) for scales in LISTS]
    compile_blocks(generator, backend)
    counts = []
    for scales, expected in zip(LISTS, eager, strict=True):
        assert_same(train(generator, scales), expected)
        counts.append(backend.count)
    assert 0 < counts[0] < counts[1] == counts[-1]


@pytest.mark.parametrize("kind", ["flowar", "flexvar"])
def test_sampling_compiles_one_token_and_any_number(kind):
    generator, backend = randomise(MAKE[kind]()), Counter("eager")
    lists = LISTS if kind == "flexvar" else LISTS[:1]
    eager = [sample(generator, scales) for scales in lists]
    compile_blocks(generator, backend)
    assert_same(sample(generator, lists[0]), eager[0])
    first = backend.count
    for scales, expected in zip(lists, eager, strict=True):
        assert_same(sample(generator, scales), expected)
    assert 0 < first == backend.count


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["flowar", "flowar-cross"])
def test_graphs_of_solver_steps_read_the_weights_of_the_moment(kind):
    compiled, eager = (randomise(MAKE[kind]()).cuda() for _ in range(2))
    compile_blocks(compiled, "eager")
    for _ in range(2):  # the second time, the graphs are there
        assert_same(sample(compiled), sample(eager))
        with torch.no_grad():
            torch._foreach_mul_([*compiled.parameters(), *eager.parameters()], 0.5)


def test_names_of_weights_stay_and_copies_are_not_compiled():
    generator, backend = make_code_generator("var"), Counter("eager")
    names = list(generator.state_dict())
    compile_blocks(generator, backend)
    train(copy.deepcopy(generator))
    assert backend.count == 0
    train(generator)
    assert backend.count > 0 and list(generator.state_dict()) == names


def test_what_is_compiled_is_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")  # both, so that nothing of this is left behind
    compile_blocks(make_code_generator("var"))
    assert cache_dir() == str(tmp_path / "scalear" / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    compile_blocks(make_code_generator("var"))
    assert cache_dir() == str(tmp_path / "mine")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_takes_the_steps_of_an_eager_one_and_either_goes_on_from_its_checkpoint(
    experiment, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert run("fit", *experiment.generator("compiled"), "--model.compile=true") == 0
    folders = ("flowar", "compiled")
    eager, compiled = (torch.load(experiment.checkpoint(name), weights_only=False) for name in folders)
    assert list(eager["state_dict"]) == list(compiled["state_dict"])
    for one, other in zip(compiled["state_dict"].values(), eager["state_dict"].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for flag in ("true", "false"):
        checkpoint = f"--ckpt_path={experiment.checkpoint('compiled')}"
        longer = [checkpoint, f"--model.compile={flag}", f"--trainer.default_root_dir={tmp_path / flag}"]
        assert run("fit", *experiment.generator("compiled"), "--trainer.max_steps=5", *longer) == 0
        assert run("predict", *experiment.generator("compiled"), *longer) == 0
