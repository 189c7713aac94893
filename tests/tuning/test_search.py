"""A search by a function instead of images: what it tries, how it goes on, and what its report says."""

import json
import math
from dataclasses import replace

import pytest
from PIL import Image

from scalear.class_paths import build_settings
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.scales import ScaleSchedule
from scalear.tuning.judge import SECONDS
from scalear.tuning.report import draw_fronts, front, front_table, judged_table, write_overlay
from scalear.tuning.search import START as START_NUMBER
from scalear.tuning.search import Goal, SearchRecord, Trial, judge_winner, search, suggest
from scalear.tuning.space import Settings, search_space
from scalear.yaml_files import read_yaml

START = Settings(Guidance(8.0), FlowSolver("ab2", 8, "late"))
SPACE = search_space(START, ScaleSchedule.parse("1,2,4"), {"model.guidance.weight": [1, 9]}, num_classes=3)
FID = Goal("fid", "lower")


def measure(settings: Settings) -> dict[str, float]:
    """Best at weight 3, with the linear ramp and many steps."""
    weight, steps = settings["model.guidance.weight"], settings["model.sampling.num_steps"]
    fid = 3 + math.log(weight / 3) ** 2 + 2 / steps + (settings["model.guidance.ramp"] == "constant")
    return {"fid": fid, "recall": 0.6 - 0.01 * weight, SECONDS: 0.001 * steps}


def searched(path, trials, goal=FID, measure=measure, **budget) -> SearchRecord:
    """A search that goes on from a file, if there is one."""
    record = SearchRecord.read(path) if path.exists() else SearchRecord(path, {"weights": "a"})
    search(record, SPACE, goal, START, measure, seed=1, max_trials=trials, **budget)
    return record


def test_it_begins_with_the_config_and_finds_something_better(tmp_path, capsys):
    record = searched(tmp_path / "trials.json", 25)
    first = record.trials[0]
    assert first.values == {name: START[name] for name in SPACE} and first.numbers == measure(START)
    best = record.trials[record.winner(FID)]
    assert best.numbers["fid"] == min(trial.numbers["fid"] for trial in record.trials) < first.numbers["fid"] - 0.7
    told = capsys.readouterr().err
    assert (
        "trial 0, 24 left: fid 4.212, recall 0.52, " in told
        and "(weight 8.0, ramp linear, start_time null, end_time null, num_steps 8)\ntrial 1, 23 left: " in told
    )


@pytest.mark.parametrize("goal", [FID, Goal("recall", "higher"), Goal("fid", "lower", pareto=True)], ids=str)
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, goal):
    def values(record):
        return [trial.values for trial in record.trials]

    whole = searched(tmp_path / "whole.json", 12, goal)

    def killed(settings, calls=[]):  # noqa: B006
        calls.append(settings)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return measure(settings)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "parts.json", 12, goal, killed)
    assert len(SearchRecord.read(tmp_path / "parts.json").trials) == 7
    parts = searched(tmp_path / "parts.json", 12, goal)
    assert values(parts) == values(whole) and len({str(tried) for tried in values(whole)}) == 12
    assert searched(tmp_path / "parts.json", 12, goal, killed).winner(goal) == whole.winner(goal)  # nothing is redone


def test_the_number_decides_what_is_good(tmp_path):
    record = searched(tmp_path / "trials.json", 15, Goal("recall", "higher"))
    best = record.trials[record.winner(Goal("recall", "higher"))]
    assert best.numbers["recall"] == max(trial.numbers["recall"] for trial in record.trials) > 0.58


def test_minutes_bound_a_search_and_count_what_was_before(tmp_path):
    assert len(searched(tmp_path / "a.json", 9, max_minutes=1e-9).trials) == 1
    assert len(searched(tmp_path / "a.json", 9, max_minutes=1e-9).trials) == 1
    assert len(searched(tmp_path / "a.json", 4, max_minutes=60).trials) == 4


def test_settings_that_fail_are_noted_but_not_those_of_the_config(tmp_path):
    def fragile(settings):
        if settings["model.guidance.weight"] < limit:
            raise ValueError("scale 1: velocities are not finite")
        return measure(settings)

    limit = 7
    record = searched(tmp_path / "trials.json", 8, measure=fragile)
    failed = [trial for trial in record.trials if trial.failure]
    assert failed and all(trial.failure.endswith("not finite") and not trial.numbers for trial in failed)
    assert len(record.measured()) == 8 - len(failed) and record.trials[record.winner(FID)] not in failed
    limit = 9
    with pytest.raises(ValueError, match="velocities are not finite"):
        searched(tmp_path / "another.json", 8, measure=fragile)


def test_a_winner_that_fails_on_other_noise_makes_room_for_the_next(tmp_path, capsys):
    record = searched(tmp_path / "trials.json", 8)
    first, best = record.winner(FID), record.trials[record.winner(FID)].values
    record.judged[START_NUMBER] = measure(START)

    def fragile(settings):
        if settings == START.changed(best):
            raise ValueError("scale 1: velocities are not finite")
        return measure(settings) | {"fid": 1.5}

    judge_winner(record, FID, START, fragile)
    second = record.winner(FID)
    assert second != first and record.trials[first].failure.endswith("not finite")
    assert record.judged.keys() == {START_NUMBER, second} and record.judged[second]["fid"] == 1.5
    assert f"{second} (winner)" in front_table(record, FID) and f"{first} (" not in front_table(record, FID)
    assert f"trial {first}, the winner so far, fails on other noise: scale 1" in capsys.readouterr().err
    assert SearchRecord.read(record.path) == record

    def never(settings):
        raise AssertionError

    judge_winner(record, FID, START, never)  # nothing is redone


def test_a_small_space_ends_the_search(tmp_path, capsys):
    space = {"model.guidance.ramp": ["linear", "constant"], "model.sampling.num_steps": [4, 8, 16]}
    record = SearchRecord(tmp_path / "trials.json", {})
    search(record, space, FID, START, measure)
    assert len(record.trials) == 6 and len({str(trial.values) for trial in record.trials}) == 6
    assert suggest(space, record.trials, FID, seed=5) is None
    assert "there is nothing left to try" in capsys.readouterr().err


@pytest.fixture
def record(tmp_path) -> SearchRecord:
    """Trials with (seconds, FID, recall) of a toy set."""
    points = [(4, 5.0, 0.3), (4, 4.0, 0.4), (8, 4.0, 0.5), (8, 3.0, 0.1), (9, 3.5, 0.6), (2, 9.0, 0.2)]
    trials = [
        Trial(
            {"model.guidance.weight": float(place), "model.sampling.top_k": None}, {"fid": b, "recall": c, SECONDS: a}
        )
        for place, (a, b, c) in enumerate(points)
    ]
    judged = {0: {"fid": 5.5, "recall": 0.3, SECONDS: 4.0}, 3: {"fid": 3.25, "recall": 0.1, SECONDS: 8.0}}
    return SearchRecord(tmp_path / "trials.json", {}, [*trials, Trial({}, {}, "failed")], judged)


def test_the_fronts_are_what_nothing_beats(record):
    assert front(record, FID, SECONDS) == [5, 1, 3] and front(record, FID, "recall") == [4, 3]
    table = front_table(record, FID).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["3 (winner)", "4", "1", "0 (config)", "5"]
    assert table[0].split() == "| trial | weight | top_k | fid | s/image | recall | on the front of |".split()
    assert table[2].split() == "| 3 (winner) | 3.0 | null | 3 | 8 | 0.1 | s/image, recall |".split()
    assert "| 0 (config, winner) |" in front_table(replace(record, trials=record.trials[:1]), FID)
    judged = [line.split() for line in judged_table(record, FID).splitlines()[2:]]
    assert judged == ["| config | 5.5 | 4 | 0.3 |".split(), "| winner | 3.25 | 8 | 0.1 |".split()]


def test_the_picture_and_the_overlay_are_written(record, tmp_path):
    draw_fronts(tmp_path / "pareto.png", record, FID)
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.size == (1500, 675) and len(set(picture.convert("RGB").getdata())) > 100
    write_overlay(tmp_path / "winner.yaml", START, "1,2", "said")
    arguments = read_yaml(tmp_path / "winner.yaml")["model"]["init_args"]
    assert Settings(Guidance(**arguments["guidance"]), build_settings(arguments["sampling"])) == START
    assert arguments["samples"] == {"scales": "1,2"}
    assert (tmp_path / "winner.yaml").read_text().startswith("# said\n")


@pytest.mark.parametrize(
    "content", ["", "[]", json.dumps({"trials": [{"x": 1}], "judged": {}, "origin": {}, "machines": []})]
)
def test_what_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "trials.json").write_text(content)
    with pytest.raises(ValueError, match="trials.json is no record of a search .*: begin anew with --force"):
        SearchRecord.read(tmp_path / "trials.json")
