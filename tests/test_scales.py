import pytest
import torch

from scalear.scales import ScaleSchedule


@pytest.mark.parametrize("scales", ["1,2,4,8,16", "1,4,16", "1,2x4,3x4,4x8", "3", "2x1,2x3"])
def test_block_causal_mask_equals_a_loop_over_tokens(scales):
    schedule = ScaleSchedule.parse(scales)
    scale_of_token = [k for k, (height, width) in enumerate(schedule.sizes) for _ in range(height * width)]
    mask = schedule.block_causal_mask()
    assert mask.dtype == torch.bool and mask.shape == (schedule.num_tokens, schedule.num_tokens)
    assert mask.tolist() == [[key <= query for key in scale_of_token] for query in scale_of_token]
    assert schedule.level_ids().tolist() == scale_of_token


def test_lengths_offsets_and_parts():
    schedule = ScaleSchedule.parse("1,2x4,4x8")
    assert (schedule.num_scales, schedule.num_tokens) == (3, 41)
    assert schedule.lengths == (1, 8, 32)
    assert schedule.offsets == (0, 1, 9, 41)
    assert schedule.names == ["1", "2x4", "4x8"]
    assert schedule.scale(1).sizes == ((2, 4),)
    x_BLC = torch.arange(2 * 41 * 3).reshape(2, 41, 3)
    parts = schedule.split(x_BLC)
    assert [part.shape for part in parts] == [(2, 1, 3), (2, 8, 3), (2, 32, 3)]
    assert torch.equal(torch.cat(parts, dim=1), x_BLC)


@pytest.mark.parametrize(
    "written",
    ["1,2x4,4x8", " 1, 2x4 ,4x8,", [1, [2, 4], (4, 8)], ["1", "2x4", "4x8"], [[1], [2, 4], [4, 8]]],
)
def test_every_way_to_write_a_schedule_is_the_same_schedule(written):
    schedule = ScaleSchedule.parse(written)
    assert schedule == ScaleSchedule(((1, 1), (2, 4), (4, 8)))
    assert hash(schedule) == hash(ScaleSchedule(((1, 1), (2, 4), (4, 8))))
    assert ScaleSchedule.parse(schedule) is schedule
    assert ScaleSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    "scales, message",
    [
        ("", "must not be empty; write for example"),
        ([], "must not be empty"),
        ("4,2", "scale 2 follows 4 in 4,2: .*sort the list"),
        ("1,2,2", "scale 2 follows 2"),
        ("1,4x2,2x4", "scale 2x4 follows 4x2"),
        ("0,1", "scale 0 in 0,1 must be at least 1x1"),
        ([[1, -2]], "scale 1x-2"),
        ("1,two", "'two' is not a scale: write a side such as 4"),
        ("1,2x3x4", "'2x3x4' is not a scale"),
        ([1, [2, 3, 4]], r"\[2, 3, 4\] is not a scale"),
        ("256px-5", "'256px-5' is not a scale: .* or alone a list's name: 256px-6, 256px-7"),
        ([1, None], "None is not a scale"),
        ([1, 2.5], "2.5 is not a scale"),
        ([1, [2.5, 4]], r"\[2.5, 4\] is not a scale"),
    ],
)
def test_what_is_no_schedule_is_refused(scales, message):
    with pytest.raises(ValueError, match=message):
        ScaleSchedule.parse(scales)


def test_a_schedule_must_end_at_the_latent():
    schedule = ScaleSchedule.parse("1,2,4")
    schedule.require_final((4, 4))
    with pytest.raises(ValueError, match="end at 4 tokens, but the latent has 4x8: let the list end at 4x8"):
        schedule.require_final((4, 8))
