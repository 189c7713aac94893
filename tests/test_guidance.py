import pytest

from scalear.flow import flowar_times
from scalear.guidance import Guidance
from scalear.scales import ScaleSchedule

DOUBLING = ScaleSchedule.parse("1,2,4,8,16")


@pytest.mark.parametrize(
    "weight, official", [(2.4, [1.0, 1.35, 1.7, 2.05, 2.4]), (4.3, [1.0, 1.825, 2.65, 3.475, 4.3])]
)
def test_linear_ramp_is_the_official_one(weight, official):
    assert [Guidance(weight).at_scale(k, DOUBLING) for k in range(5)] == pytest.approx(official)


def test_constant_ramp_and_a_single_scale_have_the_full_weight():
    assert [Guidance(3.0, ramp="constant").at_scale(k, DOUBLING) for k in range(5)] == [3.0] * 5
    assert Guidance(3.0).at_scale(0, DOUBLING.scale(0)) == 3.0


@pytest.mark.parametrize(
    "scales, official",
    [
        ("256px-10", [k / 9 for k in range(10)]),
        ("1,2,3,5,8,11,16", [k / 6 for k in range(7)]),
        ("256px-13", [k / 9 for k in range(13)]),  # beyond the full weight
        ("1,2,3,4,5,6,8,10,13,16,24", [*(k / 9 for k in range(10)), 1.0]),
    ],
)
def test_flexvars_ramp_is_the_official_one(scales, official):
    schedule, guidance = ScaleSchedule.parse(scales), Guidance(3.5, ramp="flexvar")
    weights = [guidance.at_scale(k, schedule) for k in range(schedule.num_scales)]
    assert weights == pytest.approx([1 + 2.5 * ratio for ratio in official])


def test_one_is_off():
    assert not Guidance(1.0).active
    assert Guidance(1.5).active and Guidance(0.0).active
    assert [Guidance(1.0).at_scale(k, DOUBLING) for k in range(5)] == [1.0] * 5


# How many steps the official code guides: "guidance" 0.9 and 0.7 are start times 0.1 and 0.3.
@pytest.mark.parametrize(
    "num_steps, start_time, guided", [(25, 0.1, 22), (25, 0.3, 19), (50, 0.1, 45), (50, 0.3, 35), (50, 0.0, 50)]
)
def test_the_time_interval_guides_the_official_steps(num_steps, start_time, guided):
    guidance = Guidance(2.0, start_time=start_time)
    steps = [guidance.at_time(t) for t in flowar_times(num_steps)[:-1]]
    assert sum(steps) == guided
    assert steps == sorted(steps)  # off, then on
    assert Guidance(2.0).jump == 0.1


def test_an_interval_ends_before_data_where_it_is_told_to():
    times = (0.0, 0.2, 0.2 - 1e-12, 0.5, 0.7 - 1e-12, 0.7, 1.0)
    assert [Guidance(2.0, start_time=0.2, end_time=0.7).at_time(t) for t in times] == [0, 1, 1, 1, 0, 0, 0]
    assert Guidance(2.0, end_time=1.0).at_time(1.0) and Guidance(2.0).at_time(1.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"end_time": 0.1}, "end_time must be above the start time 0.1 and at most 1, got 0.1; null guides to the end"),
        ({"end_time": 1.5}, "end_time must be above the start time 0.1 and at most 1, got 1.5"),
        ({"start_time": 0.5, "end_time": 0.4}, "end_time must be above the start time 0.5 and at most 1, got 0.4"),
        ({"weight": -0.5}, "guidance weight must be a number >= 0, got -0.5; 1.0 is off"),
        ({"start_time": 1.5}, r"start_time must be in \[0, 1\], got 1.5; 0 guides every step"),
        ({"weight": float("nan")}, "guidance weight must be a number >= 0, got nan"),
    ],
)
def test_what_cannot_guide_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**arguments)
