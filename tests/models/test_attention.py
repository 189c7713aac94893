"""Attention over scales; `tests/fast` compares the fast one with it."""

import pytest
import torch
import torch.nn.functional as F

from scalear.models.attention import Rotary, ScaledDotProduct
from scalear.scales import ScaleSchedule


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scales", ["1,2,4", "1,4", "1,1x2,2x3,3x5", "3"])
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

    by_scale = run(lambda q, k, v: ScaledDotProduct(causal, scale=0.3)(q, k, v, schedule))
    dense = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3))
    for one, other in zip(by_scale, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("causal", [True, False])
def test_keys_of_earlier_scales_may_come_first(causal):
    schedule, attend = ScaleSchedule.parse("1,2,2x3,4"), ScaledDotProduct(causal)
    q, k, v = torch.randn(3, 2, 3, schedule.num_tokens, 8, dtype=torch.float64).unbind()
    whole = attend(q, k, v, schedule)
    last, first = ScaleSchedule(schedule.sizes[2:]), schedule.offsets[2]
    torch.testing.assert_close(attend(q[:, :, first:], k, v, last), whole[:, :, first:])


@pytest.mark.parametrize("side", [4, 16])
def test_rotary_is_a_rotation_by_the_place_in_a_scale(side):
    schedule, rotary = ScaleSchedule.parse("1,2x4"), Rotary(8, side)
    q = torch.randn(2, 3, schedule.num_tokens, 8, generator=torch.Generator().manual_seed(2))
    turns = rotary.turns(schedule, q.device)
    rotated = rotary(q, turns)
    torch.testing.assert_close(rotated.norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(rotated[:, :, :1], q[:, :, :1])  # scale 0 sits at the origin
    row, column = 1, 3
    angles = [row * side / 2, row * side / 2 / 100, column * side / 4, column * side / 4 / 100]
    turn = torch.polar(torch.ones(4), torch.tensor(angles))
    pairs = torch.view_as_complex(q[:, :, 1 + row * 4 + column].unflatten(-1, (4, 2)).contiguous())
    expected = torch.view_as_real(pairs * turn).flatten(-2)
    torch.testing.assert_close(rotated[:, :, 1 + row * 4 + column], expected, rtol=1e-4, atol=1e-5)
    assert rotary(q.bfloat16(), turns).dtype == torch.bfloat16


def test_head_widths_must_be_of_two_pairs():
    with pytest.raises(ValueError, match="head width divisible by 4, got 6"):
        Rotary(6, 4)
