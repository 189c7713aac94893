"""Mamba in place of attention: the recurrence, paths, caches, and the generator around them."""

from functools import partial

import pytest
import torch
from model_fixtures import (
    NUM_CLASSES,
    make_code_model,
    make_var_transformer,
    randomise,
    seeded,
    stepwise,
    transformer_inputs,
)

from scalear.fast.accelerate import accelerate
from scalear.guidance import Guidance
from scalear.models.blocks import Place
from scalear.models.mamba import Mamba, MambaBlock
from scalear.models.positions import GridPositions
from scalear.models.transformer import ScaleTransformer
from scalear.models.zigzag import NUM_PATHS, zigzag
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling
from scalear.training.optim import split_parameters

CPU = torch.device("cpu")
SCHEDULES = ["1,2,4", "1,4", "1,2,3,4,5,6,7", "1,1x2,2x3,3x5", "1x2,2x4,4x8"]


def fresh_transformer(depth: int, scales: str = "1,2,4", **block) -> ScaleTransformer:
    torch.manual_seed(0)
    parts = {"positions": partial(GridPositions, side=4), "block": partial(MambaBlock, d_state=4, **block)}
    return make_var_transformer(scales, depths=[depth], **parts)


def make_transformer(depth: int = NUM_PATHS, scales: str = "1,2,4", fast: bool = True) -> ScaleTransformer:
    transformer = randomise(fresh_transformer(depth, scales), std=0.3)
    if fast:
        accelerate(transformer)
    return transformer


def test_the_scan_sums_what_is_left_of_every_earlier_token():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 9, 5), (2, 9, 5), (4, 5), (2, 9, 4), (2, 9, 4), (2, 4, 5)]
    x, step, rate, write, read, start = (torch.randn(s, dtype=torch.double, generator=generator) for s in shapes)
    step, rate = step.exp(), -rate.exp()
    y, last = Mamba(8, 0, 4, 2, 1.0).scan(x, step, rate, write, read, start)
    time = step.cumsum(1)
    for t in range(9):
        left = (rate[:, :] * (time[:, t, None] - time[:, : t + 1])[:, :, None]).exp()  # (B, earlier tokens, N, E)
        entered = (step * x)[:, : t + 1, None] * write[:, : t + 1, :, None]
        state = (left * entered).sum(1) + (rate * time[:, t, None]).exp() * start
        torch.testing.assert_close(y[:, t], (read[:, t, :, None] * state).sum(1))
    torch.testing.assert_close(last, state)


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
    assert [block.mixer.path for block in transformer.stacks[0]] == [*range(NUM_PATHS), 0, 1]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("scales", SCHEDULES)
@torch.no_grad()
def test_scale_by_scale_equals_all_at_once(scales, fast):
    transformer = make_transformer(fast=fast).double()
    schedule = ScaleSchedule.parse(scales)
    context, cond = transformer_inputs(schedule)
    whole = transformer(context, cond, schedule)
    assert whole.shape == (2, schedule.num_tokens, 24) and whole.std() > 0.1
    torch.testing.assert_close(stepwise(transformer, schedule, context, cond), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("changed", [1, 2])
@torch.no_grad()
def test_a_scale_changes_nothing_before_it_and_everything_after(changed):
    transformer = make_transformer().double()
    schedule = transformer.schedule
    context, cond = transformer_inputs(schedule)
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
        schedule = ScaleSchedule.parse(scales)
        cache = transformer.make_cache(schedule)
        with torch.autocast("cpu", torch.bfloat16):
            for length in (0, *schedule.lengths[1:]):
                transformer.step(torch.randn(2, length, 4), torch.randn(2, 24), cache)
        states = cache.layers
        assert len(states) == NUM_PATHS and {part.shape for part in vars(states[0]).values()} == {
            (2, 3, 48),
            (2, 4, 48),
        }
        assert states[0].state_BNE.dtype == torch.float32


@torch.no_grad()
def test_autocast_changes_little_also_with_a_cache():
    transformer = fresh_transformer(NUM_PATHS, gate_init=1.0)
    context, cond = (tensor.float() for tensor in transformer_inputs(transformer.schedule))
    expected = transformer(context, cond, transformer.schedule)
    with torch.autocast("cpu", torch.bfloat16):
        whole = transformer(context, cond, transformer.schedule)
        steps = stepwise(transformer, transformer.schedule, context, cond)
    for out in (whole, steps):
        assert (out - expected).norm() < 0.005 * expected.norm()


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpoint in (False, True):
        transformer = make_transformer(depth=2).double()
        transformer.checkpoint_blocks = checkpoint
        transformer(*transformer_inputs(transformer.schedule), transformer.schedule).square().sum().backward()
        gradients.append([parameter.grad for parameter in transformer.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 20
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_initial_weights():
    block = MambaBlock(64, Place(0, 4, ScaleSchedule.parse("1,2")), gate_init=1e-3)
    layer = block.mixer
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
    model = make_code_model("flexvar", depths=[NUM_PATHS], block=partial(MambaBlock, d_state=4))
    randomise(model.generator, std=0.3)
    label, schedule = torch.arange(6) % NUM_CLASSES, ScaleSchedule.parse("1,2x3,4x6")
    how = {"sampling": TokenSampling(top_k=8), "guidance": Guidance(2.5)}
    together = model.sample_latent(label, seeded(6), schedule, **how)
    assert together.shape == (6, 4, 4, 6)
    alone = model.sample_latent(label[:1], seeded(1), schedule, **how)
    torch.testing.assert_close(alone[0], together[0], rtol=0, atol=1e-3)
    unguided = model.sample_latent(label, seeded(6), schedule, **how | {"guidance": Guidance()})
    assert not torch.equal(unguided, together)
