"""What the command line says of settings that exist in several kinds."""

from pathlib import Path

import pytest
from cli_fixtures import run

ROOT = Path(__file__).parents[2]


def test_what_is_missing_is_named_as_it_is_typed(capsys):
    assert run("edit", "refine", "--label=1") == 2
    assert "these arguments are missing: image, out, config (-c)\n" in capsys.readouterr().err
    assert run("fit") == 2
    assert "these arguments are missing: config (-c)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config, typed, message",
    [
        ("flowar", "sampling.num_steps=0", "num_steps must be at least 1 on the late grid, got 0"),
        ("flexvar", "sampling.top_k=0", "top_k must be at least 1, got 0; null keeps all codes"),
        ("flexvar", "sampling.top_k=abc", "top_k: Expected a <class 'int'>"),
        ("flexvar", "sampling.num_steps=4", "Option 'num_steps' is not accepted"),
        ("flexvar", "sampling=FlowSolver", "TokenHead cannot sample with FlowSolver"),
        ("flowar", "sampling.num_steps=[2,4]", "num_steps has 2 entries for 3 scales: [2, 4]"),
        ("flexvar", "sampling.nosuch=4", "Option 'nosuch' is not accepted"),
        ("flexvar", "report=7", "report: Expected a dot import path string: 7"),
        ("flexvar", "samples.scales=1,4,2", "scale 2 follows 4 in 1,4,2"),
    ],
)
def test_the_error_is_that_of_the_kind_that_was_meant(monkeypatch, capsys, config, typed, message):
    monkeypatch.chdir(ROOT)
    assert run("fit", "-c", f"configs/fashion/{config}.yaml", f"--model.{typed}") == 2
    error = capsys.readouterr().err
    assert message in error and "Union" not in error
