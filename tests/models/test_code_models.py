"""VAR and FlexVAR: the parts that differ from FlowAR, and generators of codes."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_fixtures import (
    NUM_CLASSES,
    NUM_CODES,
    make_code_model,
    make_model,
    make_var_transformer,
    network_class,
    randomise,
    seeded,
    stepwise,
    transformer_inputs,
)
from recorded_draws import RecordedDraws

from scalear.draws import SeededDraws
from scalear.fast.accelerate import accelerate
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.image_model import ImageModel
from scalear.models.flow_head import FlowHead
from scalear.models.positions import GridPositions, LevelPositions, SinCosPositions, TokenPositions
from scalear.models.token_head import TokenHead
from scalear.pyramid import Content
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling

KINDS = ["var", "flexvar"]
SCALABLE = [
    partial(GridPositions, side=4),
    partial(GridPositions, side=3, resize="bilinear", init="sincos"),
    SinCosPositions,
]


def random_model(kind: str) -> ImageModel:
    model = make_code_model(kind)
    randomise(model.generator, std=0.4)
    return model.eval()


@pytest.mark.parametrize("positions", SCALABLE)
@pytest.mark.parametrize("scales", ["1,2,4", "1,4", "1,2,3,4,5,6,7", "1,1x2,2x3,3x5", "1x2,2x4,4x8"])
@torch.no_grad()
def test_scalable_models_do_any_list_cached_as_masked(positions, scales):
    transformer = randomise(make_var_transformer("1,2,4", positions=positions)).double()
    schedule = ScaleSchedule.parse(scales)
    context, cond = transformer_inputs(schedule)
    whole = transformer(context, cond, schedule)
    assert whole.shape == (2, schedule.num_tokens, 24)
    torch.testing.assert_close(stepwise(transformer, schedule, context, cond), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("block", [{}, {"normalise": False}, {"shared_modulation": True}])
@torch.no_grad()
def test_cached_steps_equal_the_masked_forward(block, fast):
    transformer = randomise(make_var_transformer(block=block)).double()
    if fast:
        accelerate(transformer)
    context, cond = transformer_inputs(transformer.schedule)
    whole = transformer(context, cond, transformer.schedule)
    steps = stepwise(transformer, transformer.schedule, context, cond)
    torch.testing.assert_close(steps, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("changed", [1, 2])
@torch.no_grad()
def test_a_scale_changes_nothing_before_it(changed):
    transformer = randomise(make_var_transformer()).double()
    schedule = transformer.schedule
    context, cond = transformer_inputs(schedule)
    before = schedule.split(transformer(context, cond, schedule))
    context[:, schedule.offsets[changed] - 1 : schedule.offsets[changed + 1] - 1] += 1.0
    after = schedule.split(transformer(context, cond, schedule))
    equal = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert equal == [k < changed for k in range(3)]


@pytest.mark.parametrize("positions", [LevelPositions, TokenPositions])
def test_learned_positions_refuse_another_list(positions):
    transformer = make_var_transformer("1,2,4", positions=positions)
    other = ScaleSchedule.parse("1,3,4")
    with pytest.raises(ValueError, match="learned positions for scales 1,2,4 and cannot do 1,3,4"):
        transformer(*transformer_inputs(other, torch.float32), other)


@pytest.mark.parametrize("positions", [LevelPositions, *SCALABLE])
def test_the_start_vector_marks_scale_0_alone(positions):
    schedule = ScaleSchedule.parse("1,2,3")
    table = positions(24, schedule)
    vectors = schedule.split(table(schedule, 0, 3)[None])
    with torch.no_grad():
        table.start += 1.0
    moved = schedule.split(table(schedule, 0, 3)[None])
    assert [bool((one != other).all()) for one, other in zip(vectors, moved, strict=True)] == [True, False, False]
    for k in range(3):
        torch.testing.assert_close(table(schedule, k, k + 1), moved[k][0], rtol=0, atol=0)


def test_the_grid_is_averaged_and_knows_rows_and_columns_apart():
    grid = GridPositions(8, ScaleSchedule.parse("1"), side=4)
    vectors = grid(ScaleSchedule.parse("1,2,2x4"), 1, 3)
    torch.testing.assert_close(vectors[1], grid.grid_Dhw[:, :2, 2:].mean((1, 2)))
    torch.testing.assert_close(vectors[4:], F.avg_pool2d(grid.grid_Dhw, (2, 1)).flatten(1).T)
    assert grid.grid_Dhw[2, 3, 1].item() == pytest.approx(math.sin(3 * 10000 ** (-2 / 8)))
    assert grid.grid_Dhw[3, 3, 1].item() == pytest.approx(math.cos(1 * 10000 ** (-2 / 8)))


def test_a_grid_may_begin_as_sines_and_cosines_of_row_and_column():
    schedule = ScaleSchedule.parse("1,2x3,4")
    grid, fixed = GridPositions(16, schedule, side=4, init="sincos"), SinCosPositions(16, schedule)
    torch.testing.assert_close(grid(schedule, 2, 3), fixed(schedule, 2, 3))
    torch.testing.assert_close(grid(schedule, 1, 2)[0], F.adaptive_avg_pool2d(grid.grid_Dhw, (2, 3))[:, 0, 0])
    assert grid.grid_Dhw.requires_grad and not list(fixed.parameters())[1:]  # of the other only the start is learned


def test_fixed_positions_are_alike_at_the_same_place():
    table = SinCosPositions(16, ScaleSchedule.parse("1,4"))
    coarse, fine = table(ScaleSchedule.parse("1,2,6"), 1, 2), table(ScaleSchedule.parse("1,2,6"), 2, 3)
    torch.testing.assert_close(coarse[3], fine[4 * 6 + 4])  # the centre of the last quarter
    assert torch.cdist(fine, fine).add(torch.eye(36)).min() > 0.1


def test_initial_weights_are_vars():
    transformer = make_var_transformer(dim=128, depths=[4], num_heads=4)
    std, block = (3 * 128) ** -0.5, transformer.stacks[0][1]
    gates, others = block.modulation.weight[:256], block.modulation.weight[256:]
    expected = {
        transformer.context_proj.weight: 1.0,
        transformer.class_embedding.weight: 1.0,
        transformer.positions[0].table_LD: 1.0,
        block.mixer.qkv.weight: 1.0,
        block.mixer.proj.weight: 8**-0.5,
        block.mlp.fc1.weight: 1.0,
        block.mlp.fc2.weight: 8**-0.5,
        transformer.norms[0].modulation.weight: 0.5,
        TokenHead(Content(4, 64), 128, transformer.schedule).output_proj.weight: 0.02,
        gates: 1e-5,
        others: 0.5,
    }
    for weight, factor in expected.items():
        assert weight.std().item() == pytest.approx(factor * std, rel=0.15)
    torch.testing.assert_close(block.mixer.log_scale_N.exp(), torch.full((4,), 4.0))
    shared = make_var_transformer(dim=128, block={"shared_modulation": True, "gate_init": 1e-3}, num_heads=4)
    table = shared.stacks[0][0].modulation.table
    assert table[:256].std().item() == pytest.approx(1e-3 * 128**-0.5, rel=0.15)
    assert table[256:].std().item() == pytest.approx(0.5 * 128**-0.5, rel=0.15)


def test_stochastic_depth_rises_to_the_last_block_and_only_in_training():
    torch.manual_seed(0)
    transformer = randomise(make_var_transformer(depths=[3], block={"drop_path": 0.5}))
    assert [getattr(block.drop_path, "keep_prob", 1.0) for block in transformer.stacks[0]] == [1.0, 0.75, 0.5]
    context, cond = transformer_inputs(transformer.schedule, torch.float32)
    runs = [transformer.train(mode)(context, cond, transformer.schedule) for mode in (True, True, False, False)]
    assert not torch.equal(runs[0], runs[1]) and torch.equal(runs[2], runs[3])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_over_all_tokens(kind):
    model = make_code_model(kind)
    generator, schedule = randomise(model.generator), model.schedule
    latent, label = torch.randn(3, 4, 4, 4), torch.tensor([0, 1, 2])
    loss = model.loss(latent, label, RecordedDraws({"label_drop": torch.tensor([0.0, 0.5, 0.5])}))
    scales = model.pyramid.build(latent, schedule)
    cond = generator.transformer.embed(torch.tensor([NUM_CLASSES, 1, 2]))
    context, codes = torch.cat(scales.contexts[1:], 1), torch.cat(scales.targets, 1)
    logits = generator.head(generator.transformer(context, cond, schedule))
    torch.testing.assert_close(loss.total, F.cross_entropy(logits.flatten(0, 1), codes.flatten()))
    right = (logits.argmax(-1) == codes).float()
    torch.testing.assert_close(loss.overall["accuracy"], right.mean())
    per_scale = torch.stack([part.mean() for part in schedule.split(right)])
    torch.testing.assert_close(loss.per_scale["accuracy"], per_scale)


def test_a_fresh_model_is_uncertain():
    loss = make_code_model("flexvar").loss(torch.randn(3, 4, 4, 4), torch.tensor([0, 1, 2]), seeded(3))
    torch.testing.assert_close(loss.per_scale["loss"], torch.full((3,), math.log(NUM_CODES)), rtol=0.02, atol=0)


@pytest.mark.parametrize("sampling", [TokenSampling(top_k=8, top_p=0.9), TokenSampling(more_smooth=True)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_its_batch(kind, sampling):
    model = random_model(kind)
    label, how = torch.arange(8) % NUM_CLASSES, {"sampling": sampling, "guidance": Guidance(2.5)}
    together = list(model.sample_scales(label, seeded(8), **how))
    if not sampling.more_smooth:
        assert all(len(content.unique()) > 1 and content.dtype == torch.int64 for content in together)
    for index in range(8):
        alone = list(model.sample_scales(label[index : index + 1], SeededDraws([(0, index)]), **how))
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[index], rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampling", [TokenSampling(), TokenSampling(more_smooth=True)])
@pytest.mark.parametrize("kind", KINDS)
def test_forced_codes_come_out_unchanged_and_are_what_later_scales_read(kind, sampling):
    model = random_model(kind)
    label, schedule = torch.tensor([0, 1]), model.schedule
    codes = [torch.randint(NUM_CODES, (2, length)) for length in schedule.lengths]
    keep = [torch.rand(2, length) < 0.5 for length in schedule.lengths]

    def latent(*forced: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        return model.sample_latent(label, seeded(2), sampling=sampling, forced=forced)

    forced = [None, (codes[1], keep[1]), (codes[2], torch.ones_like(keep[2]))]
    scales = list(model.sample_scales(label, seeded(2), sampling=sampling, forced=forced))
    found = [content.argmax(-1) if sampling.more_smooth else content for content in scales]
    assert torch.equal(found[1][keep[1]], codes[1][keep[1]]) and torch.equal(found[2], codes[2])
    everything = [(values, torch.ones_like(where)) for values, where in zip(codes, keep, strict=True)]
    torch.testing.assert_close(latent(*everything), model.pyramid.latent(codes, schedule))
    other = (1 - codes[0] % 2, torch.ones_like(keep[0]))
    assert not torch.equal(latent(everything[0], None, None), latent(other, None, None))
    for wrong in ((codes[2], keep[2]), (codes[1][:1], keep[1]), (codes[1], keep[1][:, :1]), (codes[1][0], keep[1])):
        with pytest.raises(ValueError, match=r"forced at scale 1 of 1,2,4, 2x2, is .* it must be \(2, 4"):
            latent(None, wrong, None)
    with pytest.raises(ValueError, match="forced has 2 entries for the 3 scales 1,2,4"):
        latent(None, None)


def test_guidance_mixes_logits():
    schedule, hidden = ScaleSchedule.parse("1,2,4"), torch.randn(2, 3, 4, 24)
    head = randomise(TokenHead(Content(4, NUM_CODES), 24, schedule))

    def codes(weight: float) -> torch.Tensor:
        return head.sample(*hidden, 1, schedule, RecordedDraws({}), TokenSampling(greedy=0), Guidance(weight))

    cond, uncond = head(hidden[0]), head(hidden[1])
    assert torch.equal(codes(9.0), (uncond + 5.0 * (cond - uncond)).argmax(-1))  # half way up the ramp
    assert torch.equal(codes(1.0), cond.argmax(-1))


def test_flexvar_makes_any_size_and_var_its_own():
    label, schedule = torch.tensor([0, 1]), ScaleSchedule.parse("1,2x3,4x6")
    assert make_code_model("flexvar").sample_latent(label, seeded(2), schedule).shape == (2, 4, 4, 6)
    with pytest.raises(ValueError, match="learned positions"):
        make_code_model("var").sample_latent(label, seeded(2), schedule)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: make_var_transformer(dim=25), "dim 25 is not a multiple of num_heads 2"),
        (lambda: GridPositions(6, ScaleSchedule.parse("1"), 2, init="sincos"), "width divisible by 4, got 6"),
        (lambda: SinCosPositions(6, ScaleSchedule.parse("1")), "width divisible by 4, got 6"),
        (lambda: make_model(sampling=TokenSampling()), "FlowHead cannot sample with .* set method, num_st"),
        (
            lambda: make_code_model("var").generator.check_sampling(FlowSolver()),
            "TokenHead cannot .* set temperature, top_k",
        ),
        (lambda: TokenHead(Content(4), 24, ScaleSchedule.parse("1")), "TokenHead predicts codes: take CodePyramid"),
        (
            lambda: FlowHead(Content(4, 9), 24, ScaleSchedule.parse("1"), network_class()),
            "FlowHead predicts latents, not codes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
