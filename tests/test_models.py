import pytest
import torch
import torch.nn.functional as F
from model_fixtures import make_head, make_transformer, randomise

from scalear.attention import attend
from scalear.models.blocks import AdaLNBlock
from scalear.models.layers import GatedMlp, Rotary, RotaryAttention, attend_by_scale, zero_linear
from scalear.models.norms import rms_norm
from scalear.models.split_heads import split_heads
from scalear.scales import ScaleSchedule

SCHEDULES = ["1,2,4", "1,4", "1,1x2,2x3,3x5", "3"]


def tokens(schedule: ScaleSchedule, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*shape[:-1], schedule.num_tokens, shape[-1], dtype=dtype, generator=generator)


def transformer_inputs(schedule: ScaleSchedule, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    context = torch.randn(2, schedule.num_tokens - schedule.lengths[0], 4, dtype=dtype, generator=generator)
    return context, torch.randn(2, 24, dtype=dtype, generator=generator)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scales", SCHEDULES)
def test_attention_by_scale_equals_dense_masked_attention(scales, causal):
    schedule = ScaleSchedule.parse(scales)
    mask = schedule.block_causal_mask()
    mask = mask if causal else mask & mask.T

    def run(attention) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shape = (2, 3, schedule.num_tokens, 8)
        inputs = [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)]
        out = attention(*inputs)
        weight = torch.randn(shape, dtype=torch.float64, generator=generator)
        return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]

    by_scale = run(lambda q, k, v: attend_by_scale(q, k, v, schedule, causal))
    dense = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    for one, other in zip(by_scale, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("num_queries, num_keys", [(5, 7), (256, 256), (9, 257)])  # both sides of the short path's end
def test_attend_equals_fused_attention(num_queries, num_keys):
    generator = torch.Generator().manual_seed(0)
    lengths = (num_queries, num_keys, num_keys)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).requires_grad_() for n in lengths)
    one, other = attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(one.sum(), (q, v)), torch.autograd.grad(other.sum(), (q, v)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_attend_drops_attention_weights():
    q, k, v = torch.randn(1, 1, 200, 8), torch.randn(1, 1, 100, 8), torch.ones(1, 1, 100, 1)
    torch.manual_seed(0)
    dropped = attend(q, k, v, dropout=0.5)
    assert dropped.std() > 0.01 and dropped.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("side", [4, 16])
def test_rotary_is_a_rotation_by_the_place_in_a_scale(side):
    schedule, rotary = ScaleSchedule.parse("1,2x4"), Rotary(8, side)
    x = tokens(schedule, 2, 2 * 3 * 8)
    q, k = x.unflatten(-1, (2, 3, 8)).permute(2, 0, 3, 1, 4)
    rotated, kept = split_heads(x, 3, 2, rotary(schedule, x.device), num_turned=1)
    assert torch.equal(kept, k)
    torch.testing.assert_close(rotated.norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(rotated[:, :, :1], q[:, :, :1])  # scale 0 sits at the origin
    row, column = 1, 3
    angles = [row * side / 2, row * side / 2 / 100, column * side / 4, column * side / 4 / 100]
    turn = torch.polar(torch.ones(4), torch.tensor(angles))
    pairs = torch.view_as_complex(q[:, :, 1 + row * 4 + column].unflatten(-1, (4, 2)).contiguous())
    expected = torch.view_as_real(pairs * turn).flatten(-2)
    torch.testing.assert_close(rotated[:, :, 1 + row * 4 + column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_scale_changes_nothing_before_it(changed):
    transformer = randomise(make_transformer("1,2,4"))
    schedule = transformer.schedule
    context, cond = transformer_inputs(schedule)
    before = transformer(context, cond, schedule)
    if changed == 0:
        cond = cond + 1.0
    else:
        start, end = (offset - schedule.lengths[0] for offset in schedule.offsets[changed : changed + 2])
        context[:, start:end] += 1.0
    after = transformer(context, cond, schedule)
    for k, (one, other) in enumerate(zip(schedule.split(before), schedule.split(after), strict=True)):
        if k < changed:
            assert torch.equal(one, other)
        else:
            assert not torch.isclose(one, other, atol=1e-4).all(-1).any()  # and every token after it sees it


@pytest.mark.parametrize("scales", ["1,2,4", "1,1x2,2x3,3x5", "1,4"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@torch.no_grad()
def test_cached_steps_equal_the_masked_forward(scales, dtype, tolerance):
    transformer = randomise(make_transformer(scales)).to(dtype)
    schedule = transformer.schedule
    context, cond = transformer_inputs(schedule, dtype)
    whole = transformer(context, cond, schedule)
    cache = transformer.make_cache(2, schedule, cond.device, dtype)
    contexts = [context[:, :0], *context.split(schedule.lengths[1:], dim=1)]
    steps = torch.cat([transformer.step(part, cond, cache) for part in contexts], dim=1)
    torch.testing.assert_close(steps, whole, rtol=0, atol=tolerance)


def test_a_fresh_block_is_the_identity():
    schedule = ScaleSchedule.parse("1,2")
    block = AdaLNBlock(rms_norm(16, False), RotaryAttention(16, 2, Rotary(8), True), GatedMlp(16), zero_linear(12, 96))
    x_BLD = tokens(schedule, 2, 16)
    for cond in (torch.randn(2, 1, 12), torch.randn(2, schedule.num_tokens, 12)):
        assert torch.equal(block(x_BLD, cond, schedule), x_BLD)


@pytest.mark.parametrize("cross_attention", [False, True])
def test_a_fresh_head_returns_exactly_zero(cross_attention):
    head, schedule = make_head(cross_attention=cross_attention), ScaleSchedule.parse("1,2")
    velocity = head(tokens(schedule, 2, 4), torch.rand(2, 2), tokens(schedule, 2, 24), schedule)
    assert velocity.shape == (2, schedule.num_tokens, 4)
    assert torch.equal(velocity, torch.zeros_like(velocity))


@pytest.mark.parametrize("cross_attention", [False, True])
def test_a_head_over_joined_scales_equals_one_scale_at_a_time(cross_attention):
    head = randomise(make_head(cross_attention=cross_attention))
    schedule = ScaleSchedule.parse("1,2,2x4,4")
    x, hidden = tokens(schedule, 2, 4), tokens(schedule, 2, 24)
    noise_level_BK = torch.rand(2, schedule.num_scales)
    joined = schedule.split(head(x, noise_level_BK, hidden, schedule))
    for k, (x_k, hidden_k) in enumerate(zip(schedule.split(x), schedule.split(hidden), strict=True)):
        alone = head(x_k, noise_level_BK[:, k : k + 1], hidden_k, schedule.scale(k))
        assert alone.abs().max() > 0.1
        torch.testing.assert_close(alone, joined[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cross_attention", [False, True])
def test_checkpointed_blocks_give_the_same_loss_and_gradients(cross_attention):
    schedule = ScaleSchedule.parse("1,2,4")
    context, cond = transformer_inputs(schedule)

    def gradients(checkpoint_blocks: bool) -> list[torch.Tensor]:
        transformer = randomise(make_transformer(checkpoint_blocks=checkpoint_blocks, dropout=0.2)).train()
        torch.manual_seed(5)
        out = transformer(context, cond, schedule)
        return [out.detach(), *torch.autograd.grad(out.square().mean(), transformer.stacks.parameters())]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other)


def test_quantised_time_truncates_the_noise_level_to_thousandths():
    head = randomise(make_head(quantise_time=True))
    embedding = head.time_embedding
    first, second, third = embedding(torch.tensor([0.4271, 0.4279, 0.428]))
    assert torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: make_transformer(dim=25), "dim 25 is not a multiple of num_heads 2"),
        (lambda: make_head(dim=33), "dim 33 is not a multiple of num_heads 2"),
        (lambda: make_head(dim=12), "head width divisible by 4, got 6"),
        (lambda: make_transformer("4,2"), "scales go from coarse to fine"),
    ],
)
def test_parts_that_cannot_be_built_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
