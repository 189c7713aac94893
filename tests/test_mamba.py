"""Mamba in place of attention: the scan against the plain recurrence, paths, caches, and the generator around them."""

import sys
from functools import partial
from types import ModuleType

import pytest
import torch
import yaml
from cli_fixtures import CLASSIFIER, ROOT, run
from model_fixtures import NUM_CLASSES, NUM_CODES, CodeTokenizer, randomise
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_code_models import inputs, seeded, stepwise
from test_editing import LABEL, draws, hole, make_image, make_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from scalear.evaluation.images import load_samples
from scalear.guidance import Guidance
from scalear.models import scan
from scalear.models.blocks import Place
from scalear.models.generator import Generator
from scalear.models.mamba import Mamba, MambaBlock
from scalear.models.norms import ModulatedNorm
from scalear.models.positions import GridPositions
from scalear.models.scan import continue_scan, cuda_kernel, scan_by_kernel, selective_scan
from scalear.models.token_head import TokenHead
from scalear.models.transformer import ScaleTransformer
from scalear.models.zigzag import NUM_PATHS, zigzag
from scalear.pyramid import CodePyramid
from scalear.scales import ScaleSchedule
from scalear.tasks.editing import Editor
from scalear.token_sampling import TokenSampling
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.training.optim import split_parameters

CPU = torch.device("cpu")
SCHEDULES = ["1,2,4", "1,4", "1,2,3,4,5,6,7", "1,1x2,2x3,3x5", "1x2,2x4,4x8"]


def fresh_transformer(depth: int, scales: str = "1,2,4", **block) -> ScaleTransformer:
    torch.manual_seed(0)
    parts = {"positions": partial(GridPositions, side=4), "block": partial(MambaBlock, d_state=4, **block)}
    return ScaleTransformer(4, 24, [depth], NUM_CLASSES, scales, norm=ModulatedNorm, var_init=True, **parts)


def make_transformer(depth: int = NUM_PATHS, scales: str = "1,2,4") -> ScaleTransformer:
    return randomise(fresh_transformer(depth, scales), std=0.3)


def make_generator(num_codes: int = NUM_CODES, scales: str = "1,2,4") -> Generator:
    generator = Generator(make_transformer(scales=scales), TokenHead(num_codes, 24), CodePyramid())
    randomise(generator.head, std=0.3)
    return generator.eval()


def recurrence(x, step, rate, write, read, state):
    """The definition, token by token."""
    outputs = []
    for t in range(x.shape[1]):
        state = torch.exp(step[:, t, None] * rate) * state + (step[:, t] * x[:, t])[:, None] * write[:, t, :, None]
        outputs.append((read[:, t, :, None] * state).sum(1))
    return torch.stack(outputs, dim=1), state


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
    for function in (recurrence, continue_scan):
        out = function(*tensors)
        total = sum((part * torch.linspace(-1, 2, part.numel()).view_as(part)).sum() for part in out)
        results.append([*out, *torch.autograd.grad(total, tensors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    whole = selective_scan(*tensors[:5])
    torch.testing.assert_close(whole, recurrence(*tensors[:5], torch.zeros(3, 4, 5))[0], rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(continue_scan(*tensors)[0], results[0][0], rtol=1e-11, atol=1e-11)


def test_no_decay_is_too_strong_and_half_precision_is_scanned_in_float32():
    x, step, rate, write, read, _ = (tensor.detach().float() for tensor in scan_inputs(40))
    step = step.fill_(50.0).requires_grad_()
    out = selective_scan(x, step, rate * 100, write, read)
    assert out.isfinite().all() and torch.autograd.grad(out.sum(), step)[0].isfinite().all()
    torch.testing.assert_close(out, recurrence(x, step, rate * 100, write, read, torch.zeros(3, 4, 5))[0])
    halves = [tensor.bfloat16() for tensor in (x, step / 100, rate, write, read)]
    with torch.autocast("cpu", torch.bfloat16):
        out = selective_scan(*halves)
    expected = recurrence(*(tensor.double() for tensor in halves), torch.zeros(3, 4, 5, dtype=torch.double))[0]
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
        torch.autograd.grad(selective_scan(*tensors[:5]).sum(), tensors[:5])
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
    torch.testing.assert_close(scan_by_kernel(kernel, *tensors), selective_scan(*tensors))


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (4, 4), (5, 3)])
def test_eight_paths_go_from_neighbour_to_neighbour(size):
    schedule = ScaleSchedule(((1, 1), (1, 2), size))
    seen = set()
    for path in range(NUM_PATHS):
        order, back = zigzag(schedule, path, CPU)
        assert order[back].tolist() == list(range(schedule.num_tokens))
        scales = order.split(schedule.lengths)
        for tokens, offset, length in zip(scales, schedule.offsets, schedule.lengths, strict=False):
            assert sorted(tokens.tolist()) == list(range(offset, offset + length))
        row, column = (scales[2] - 3) // size[1], (scales[2] - 3) % size[1]
        assert (row.diff().abs() + column.diff().abs() == 1).all()
        seen.add(tuple(order.tolist()))
    assert len(seen) == NUM_PATHS


def test_paths_start_in_the_papers_corners():
    def walk(path: int) -> list[int]:
        return zigzag(ScaleSchedule.parse("2x3"), path, CPU)[0].tolist()

    assert walk(0) == [0, 1, 2, 5, 4, 3] and walk(1) == [0, 3, 4, 1, 2, 5]  # from the top left, rows or columns first
    assert [walk(path)[0] for path in range(NUM_PATHS)] == [0, 0, 3, 3, 5, 5, 2, 2]
    transformer = make_transformer(depth=NUM_PATHS + 2)
    assert [block.attention.path for block in transformer.stacks[0]] == [*range(NUM_PATHS), 0, 1]


@pytest.mark.parametrize("scales", SCHEDULES)
@torch.no_grad()
def test_scale_by_scale_equals_all_at_once(scales):
    transformer = make_transformer().double()
    schedule = ScaleSchedule.parse(scales)
    context, cond = inputs(schedule)
    whole = transformer(context, cond, schedule)
    assert whole.shape == (2, schedule.num_tokens, 24) and whole.std() > 0.1
    torch.testing.assert_close(stepwise(transformer, schedule, context, cond), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("changed", [1, 2])
@torch.no_grad()
def test_a_scale_changes_nothing_before_it_and_everything_after(changed):
    transformer = make_transformer().double()
    schedule = transformer.schedule
    context, cond = inputs(schedule)
    before = schedule.split(transformer(context, cond, schedule))
    context[:, schedule.offsets[changed] - 1] += 1.0  # its first token
    after = schedule.split(transformer(context, cond, schedule))
    for k, (one, other) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(one, other) if k < changed else (one != other).any(-1).all()


@torch.no_grad()
def test_one_layer_sees_what_is_before_on_its_path():
    layer, schedule = randomise(Mamba(8, 2, 4, 2, 1.0), std=0.5).double(), ScaleSchedule.parse("1,3")
    x = torch.randn(1, 10, 8, dtype=torch.double)
    before = layer(x, schedule)
    x[:, 1 + 4] += 1.0  # the centre of the second scale
    moved = (layer(x, schedule) != before).any(-1)[0, 1:].view(3, 3)
    assert moved.tolist() == [[True] * 3, [True, True, False], [False] * 3]  # from the bottom left, rows first


@torch.no_grad()
def test_the_cache_does_not_grow_with_tokens():
    transformer = make_transformer()
    for scales in SCHEDULES:
        states = transformer.make_cache(2, ScaleSchedule.parse(scales), CPU, torch.bfloat16).layers
        assert len(states) == NUM_PATHS and {part.shape for part in vars(states[0]).values()} == {
            (2, 3, 48),
            (2, 4, 48),
        }
        assert states[0].state_BNE.dtype == torch.float32


@torch.no_grad()
def test_autocast_changes_little_also_with_a_cache():
    transformer = fresh_transformer(NUM_PATHS, gate_init=1.0)
    context, cond = (tensor.float() for tensor in inputs(transformer.schedule))
    expected = transformer(context, cond, transformer.schedule)
    with torch.autocast("cpu", torch.bfloat16):
        whole = transformer(context, cond, transformer.schedule)
        cache = transformer.make_cache(2, transformer.schedule, CPU, torch.bfloat16)
        contexts = [context[:, :0], *context.split(transformer.schedule.lengths[1:], dim=1)]
        steps = torch.cat([transformer.step(part, cond, cache) for part in contexts], dim=1)
    for out in (whole, steps):
        assert (out - expected).norm() < 0.005 * expected.norm()


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpoint in (False, True):
        transformer = make_transformer(depth=2).double()
        transformer.checkpoint_blocks = checkpoint
        transformer(*inputs(transformer.schedule), transformer.schedule).square().sum().backward()
        gradients.append([parameter.grad for parameter in transformer.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 20
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_initial_weights():
    block = MambaBlock(64, Place(0, 4, ScaleSchedule.parse("1,2")), gate_init=1e-3)
    layer = block.attention
    steps = torch.nn.functional.softplus(layer.step_bias)
    assert 1e-3 * 0.99 < steps.min() < 3e-3 and 3e-2 < steps.max() < 1e-1 * 1.01
    torch.testing.assert_close(layer.log_rate_NE.exp(), torch.arange(1.0, 17.0)[:, None].expand(16, 128))
    assert layer.proj.weight.std().item() == pytest.approx((3 * 64 * 8) ** -0.5, rel=0.15)
    plain = {id(parameter) for parameter in split_parameters([layer])[1]}
    names = {name for name, parameter in layer.named_parameters() if id(parameter) in plain}
    assert names == {"log_rate_NE", "conv_bias", "step_bias", "skip"}
    with pytest.raises(ValueError, match="d_state and expand must be at least 1, got 0 and 2"):
        MambaBlock(64, Place(0, 4, ScaleSchedule.parse("1,2")), d_state=0)


def test_a_sample_does_not_depend_on_its_batch():
    generator = make_generator()
    generator.bind(CodeTokenizer(VectorQuantizer(4, NUM_CODES)))
    label, sampling = torch.arange(6) % NUM_CLASSES, TokenSampling(top_k=8)
    schedule = ScaleSchedule.parse("1,2x3,4x6")
    together = generator.generate(label, seeded(6), sampling, Guidance(2.5), schedule)
    assert together.shape == (6, 4, 4, 6)
    alone = generator.generate(label[:1], seeded(1), sampling, Guidance(2.5), schedule)
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-3)
    unguided = generator.generate(label, seeded(6), sampling, Guidance(), schedule)
    assert not torch.equal(unguided, together)


def test_editing_keeps_what_is_known():
    tokenizer = make_tokenizer()
    editor = Editor(make_generator(tokenizer.num_codes, "1,2,4,8"), tokenizer, TokenSampling(), Guidance(2.0))
    edit, other = (editor.inpaint(make_image(), hole(), LABEL, draws(seed)) for seed in (0, 1))
    assert not torch.equal(edit.image_BCHW, other.image_BCHW)
    difference = (edit.image_BCHW - tokenizer.reconstruction(make_image())).abs()
    assert difference[..., 8:24, 12:28].mean() > 2 * difference[..., :4, :4].mean()
    assert editor.extend(make_image(), LABEL, draws(), (40, 64), (0, 16)).image_BCHW.shape == (2, 1, 40, 64)


def test_the_laptop_config_differs_from_the_transformers_in_the_block_alone():
    configs = []
    for name in ("flexvar", "flexvar-mamba"):
        config = yaml.safe_load((ROOT / f"configs/fashion/{name}.yaml").read_text())
        assert config["trainer"].pop("default_root_dir") == f"runs/fashion/{name}"
        block = config["model"]["init_args"]["generator"]["init_args"]["transformer"]["init_args"].pop("block")
        shared = {name: block["init_args"][name] for name in ("gate_init", "exact_gelu")}
        configs.append((config, shared))
    assert configs[0] == configs[1]


def test_the_laptop_config_learns_and_samples(images, tmp_path):
    """Shrunk, on random codes, through the command line: the loss falls, and averaged weights sample."""
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("fashion/flexvar-mamba", "debug")]
    shrunk = {
        "generator.transformer.dim": 32,
        "generator.transformer.depths": "[2]",
        "generator.head.cond_dim": 32,
        "generator.transformer.num_classes": NUM_CLASSES,
        "tokenizer.shape.channels": 32,
        "report.extractor.weights": CLASSIFIER,
        "report.data_dir": images,
    }
    settings = [f"--model.{name}={value}" for name, value in shrunk.items()]
    settings += [f"--data.data_dir={images}", f"--trainer.default_root_dir={tmp_path}"]
    assert run("fit", *configs, *settings) == 0
    events = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent)).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.5
    assert run("predict", *configs, *settings, f"--ckpt_path={tmp_path}/checkpoints/last.ckpt") == 0
    samples, labels = load_samples(tmp_path / "samples.npz")
    assert samples.shape == (2 * NUM_CLASSES, 32, 32, 1) and labels.tolist() == [0, 0, 1, 1, 2, 2]
