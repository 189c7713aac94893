from collections import Counter

import pytest

from scalear.scales import STEP_TABLES, ScaleSchedule
from scalear.schedules import OfficialSchedules, PaperSchedules, continue_schedule, make_schedule

DRAWS = 10_000


def draw(sampler, count=DRAWS) -> list[tuple[int, ...]]:
    schedules = [sampler.draw(0, step) for step in range(count)]
    assert all(height == width for schedule in schedules for height, width in schedule.sizes)
    return [tuple(height for height, _ in schedule.sizes) for schedule in schedules]


def shares(values) -> dict[int, float]:
    values = list(values)
    return {value: count / len(values) for value, count in Counter(values).items()}


@pytest.mark.parametrize("name", STEP_TABLES)
def test_the_papers_lists_have_names(name):
    schedule = ScaleSchedule.parse(name)
    pixels, steps = name.split("px-")
    assert schedule.num_scales == int(steps)
    assert schedule.sizes[0] == (1, 1) and schedule.sizes[-1] == (int(pixels) // 16, int(pixels) // 16)
    assert ScaleSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("steps", [10, 11, 12, 13])
def test_made_schedules_are_the_papers(steps):
    assert make_schedule((16, 16), steps) == ScaleSchedule.parse(f"256px-{steps}")


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (4, 8), (24, 9), (1, 7), (33, 32), (64, 16), (2, 1)])
def test_made_schedules_grow_from_one_token_to_the_size_in_any_number_of_steps(size):
    for steps in range(2, max(size) + 1):
        schedule = make_schedule(size, steps)
        assert (schedule.num_scales, schedule.sizes[0], schedule.sizes[-1]) == (steps, (1, 1), size)
        for height, width in schedule.sizes:
            side = max(height, width)
            for part, whole in zip((height, width), size, strict=True):
                assert abs(part - side * whole / max(size)) <= 0.5 or part == 1


def test_made_schedules_of_other_shapes():
    assert str(make_schedule((8, 8), 5)) == "1,2,3,5,8"
    assert str(make_schedule((4, 8), 4)) == "1,1x2,2x4,4x8"
    assert str(make_schedule((1, 1), 1)) == "1"


@pytest.mark.parametrize(
    "coarse, size, scales",
    [
        ("256px-10", (24, 24), "384px-11"),
        ("256px-10", (32, 32), "512px-12"),
        ("256px-13", (32, 32), "512px-15"),
        ("1,2,4", (8, 16), "1,2,4,5x6,6x8,7x11,8x16"),
        ("1,2", (3, 2), "1,2,3x2"),
        ("1", (2, 2), "1,2"),
        ("1,4", (4, 4), "1,4"),
    ],
)
def test_schedules_go_on_to_finer_scales_as_the_papers_do(coarse, size, scales):
    assert continue_schedule(ScaleSchedule.parse(coarse), size) == ScaleSchedule.parse(scales)


def test_schedules_do_not_go_on_to_coarser_scales():
    with pytest.raises(ValueError, match="scale 3x6 follows 4 in 1,4,3x6,2x8"):
        continue_schedule(ScaleSchedule.parse("1,4"), (2, 8))


@pytest.mark.parametrize("size, steps", [((8, 8), 1), ((8, 8), 9), ((4, 8), 9), ((0, 8), 3), ((1, 1), 2)])
def test_impossible_numbers_of_steps_are_refused(size, steps):
    with pytest.raises(ValueError, match=f"no list of {steps} scales from 1x1 to {size[0]}x{size[1]} tokens"):
        make_schedule(size, steps)


def test_paper_statistics_at_side_16():
    lists = draw(PaperSchedules(16, 8))
    assert all(sides[0] == 1 and sides[-1] == 16 for sides in lists)
    lengths = shares(len(sides) for sides in lists)
    assert set(lengths) <= set(range(6, 11))
    assert lengths[10] == pytest.approx(0.95**8, abs=0.015)
    assert lengths[9] == pytest.approx(8 * 0.05 * 0.95**7, abs=0.015)
    kept = sum(len(sides) - 2 for sides in lists) / (8 * DRAWS)
    assert 1 - kept == pytest.approx(0.05, abs=0.003)
    between = shares(side for sides in lists for side in sides[1:-1])
    assert set(between) == set(range(2, 16))
    assert all(share == pytest.approx(1 / 14, abs=0.005) for share in between.values())


@pytest.mark.parametrize("side, longest, shortest", [(2, 2, 2), (3, 3, 2), (5, 5, 2), (8, 8, 4), (10, 10, 6)])
def test_paper_lists_of_small_sides(side, longest, shortest):
    lists = draw(PaperSchedules(side, 8, drop_prob=0.5), 2000)
    assert all(sides[0] == 1 and sides[-1] == side for sides in lists)
    assert {len(sides) for sides in lists} == set(range(shortest, longest + 1))
    kept = draw(PaperSchedules(side, 8, drop_prob=0.0), 10)
    assert {len(sides) for sides in kept} == {longest}


def test_drops_beyond_the_most_hit_every_scale_alike():
    between = shares(side for sides in draw(PaperSchedules(10, 8, drop_prob=1.0)) for side in sides[1:-1])
    assert all(between[side] == pytest.approx(1 / 8, abs=0.01) for side in range(2, 10))


def test_a_token_budget_shortens_lists_but_keeps_the_ends():
    free, bounded = draw(PaperSchedules(16, 8), 1000), draw(PaperSchedules(16, 8, token_budget=680), 1000)
    tokens = [sum(side * side for side in sides) for sides in bounded]
    assert max(tokens) <= 680 and all(sides[0] == 1 and sides[-1] == 16 for sides in bounded)
    for sides, shorter in zip(free, bounded, strict=True):
        fits = sum(side * side for side in sides) <= 680
        assert shorter == sides if fits else set(shorter) < set(sides)
    assert set(draw(PaperSchedules(4, 8, token_budget=17), 50)) == {(1, 4)}


def test_official_statistics_are_those_of_the_released_code():
    """Measured there on 40,000 draws."""
    lists = draw(OfficialSchedules())
    lengths = shares(len(sides) for sides in lists)
    measured = {4: 0.00025, 5: 0.000775, 6: 0.015575, 7: 0.0664, 8: 0.392875, 9: 0.477675, 10: 0.04645}
    assert all(lengths.get(length, 0) == pytest.approx(share, abs=0.015) for length, share in measured.items())
    last = shares(sides[-1] for sides in lists)
    measured = {11: 0.00215, 12: 0.02865, 13: 0.0645, 14: 0.1018, 15: 0.13825, 16: 0.66465}
    assert set(last) == set(measured)
    assert all(last[side] == pytest.approx(share, abs=0.015) for side, share in measured.items())
    assert shares(sides[1] for sides in lists)[2] > 0.999
    assert shares(lists)[OfficialSchedules.DEFAULT] == pytest.approx(0.04395, abs=0.006)
    assert max(sum(side * side for side in sides) for sides in lists) == 680


@pytest.mark.parametrize("sampler", [PaperSchedules(16, 8), OfficialSchedules()])
def test_schedules_are_functions_of_seed_and_step(sampler):
    first = [sampler.draw(3, step) for step in range(50)]
    assert [sampler.draw(3, step) for step in reversed(range(50))] == first[::-1]
    assert all(side <= most for schedule in first for side, most in zip(schedule.sizes[-1], sampler.final, strict=True))
    assert len(set(first)) > 10
    assert [sampler.draw(4, step) for step in range(50)] != first


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"side": 1}, "side must be at least 2, got 1"),
        ({"side": 8, "token_budget": 64}, "token_budget is 64, but the first and the last scale alone have 65 tokens"),
        ({"drop_prob": 1.5}, "drop_prob in \\[0, 1\\], got 8, 4, 1.5"),
        ({"max_drops": -1}, "max_drops >= 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PaperSchedules(**{"side": 16, "max_between": 8} | settings)
