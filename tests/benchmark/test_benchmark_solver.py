"""`scalear benchmark solver` on a tiny trained model: what is compared, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from cli_fixtures import run
from model_fixtures import make_model, randomise

from scalear.benchmark import solver as solver_module
from scalear.benchmark import timing
from scalear.benchmark.solver import CANDIDATES, FAST8, SolverResult, evaluations, mark_pareto, name, parse_solver
from scalear.draws import SeededDraws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance

ROOT = Path(__file__).parents[2]
COMMON = ["job", "config", "batch", "threads", "precision", "machine", "seconds_per_image", "work_tflop"]
COMMON += ["work_source", "yardstick_tflops", "fraction", "peak_rss_bytes", "parts"]


@pytest.fixture
def quick(monkeypatch):
    """A small yardstick, and a reference of few steps."""
    monkeypatch.setattr(timing, "_LONGEST", 0)
    monkeypatch.setattr(solver_module, "REFERENCE", FlowSolver("ab3", 20))


def solver_job(experiment, *args: str) -> int:
    settings = [arg for arg in experiment.generator("benchmark") if "samples" not in arg]
    return run("benchmark", "solver", *settings, "--images=9", "--batch=6", *args)


def test_solvers_make_the_same_images_from_the_same_noise(experiment, tmp_path, capsys, quick):
    checkpoint, report = f"--ckpt_path={experiment.checkpoint('flowar')}", tmp_path / "report.json"
    solvers = ["euler:3:uniform", "ab3:20:uniform", "heun:1/2/3:late"]
    assert solver_job(experiment, checkpoint, f"--json={report}", "--solvers", *solvers) == 0
    euler, same, heun = json.loads(report.read_text())
    assert list(euler)[: len(COMMON)] == COMMON and (euler["job"], euler["config"]) == ("solver", "fashion/flowar")
    assert euler["evaluations"] == [3, 3, 3] and heun["evaluations"] == [2, 4, 6]
    assert heun["evaluations_per_token"] == pytest.approx((2 + 4 * 4 + 16 * 6) / 21)
    assert same["distance"] == 0 < min(euler["distance"], heun["distance"]) and "distance" in same["pareto"]
    assert euler["pareto"] == ["fid", "distance"] and min(euler["fid"], heun["fid"]) > 0 and 0 <= heun["recall"] <= 1
    out = capsys.readouterr().out
    assert "| heun:1/2/3:late " in out and "| 2/4/6 " in out and "against 12 real ones" in out

    last = ("--ckpt_path", "last", f"--trainer.default_root_dir={experiment.root / 'flowar'}")
    assert solver_job(experiment, *last, "--model.report=null", "--solvers", "ab2:1:uniform") == 0
    assert "9 images; no FID and recall, for the config has no model.report" in capsys.readouterr().out


@pytest.mark.parametrize("solver", [FAST8, FlowSolver("midpoint", [1, 2, 3]), FlowSolver("euler", 5, "flowar")])
def test_evaluations_are_calls_of_the_network(solver):
    model, calls = randomise(make_model(sampling=solver, guidance=Guidance(2.0))).eval(), []
    network = model.generator.head.network
    network.register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    model.sample_latent(torch.tensor([0, 1]), SeededDraws([(0, 0), (0, 1)]))
    assert [calls.count(length) for length in (1, 4, 16)] == evaluations(solver, 3)


def test_the_front_is_what_nothing_beats():
    points = {"a": (4, 5.0, 0.3), "b": (4, 4.0, 0.4), "c": (8, 4.0, 0.1), "d": (8, 3.0, 0.1), "e": (24, 3.5, 0.2)}
    results = [
        SolverResult(
            **{"config": "", "batch": 1, "threads": 1, "precision": "", "machine": ""},
            **{"seconds_per_image": 1.0, "yardstick_tflops": 1.0},
            **{"solver": key, "evaluations": [], "images": 1},
            **{"evaluations_per_token": cost, "fid": fid, "recall": 0.5, "distance": distance},
        )
        for key, (cost, fid, distance) in points.items()
    ]
    mark_pareto(results)
    assert [result.pareto for result in results] == [["distance"], ["fid"], ["distance"], ["fid", "distance"], []]


def test_names_of_solvers_can_be_typed():
    assert all(parse_solver(name(solver).split()[0]) == solver for solver in CANDIDATES)
    assert name(FAST8) == "ab3:8:late (fast8)" and name(FlowSolver("ab2", [1, 2], "late")) == "ab2:1/2:late"


@pytest.mark.parametrize("text", ["ab2:8", "ab4:8:late", "ab2:x:late", "ab2::late", "ab2:8/:late", "ab2:8:late:1"])
def test_what_is_no_solver_is_refused(text):
    with pytest.raises(ValueError, match="is not METHOD:STEPS:GRID of euler|.*|ab3 and uniform|flowar|late"):
        parse_solver(text)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--ckpt_path=nowhere.ckpt"], "--ckpt_path nowhere.ckpt does not exist"),
        ([], "give --ckpt_path"),
        (["--ckpt_path=x", "--solvers", "ab2:4/8:late"], "num_steps has 2 entries for 3 scales"),
        (["--ckpt_path=x", "--solvers", "ab2:4:late", "ab2:8"], "solver 'ab2:8' is not METHOD:STEPS:GRID"),
        (["--ckpt_path=x", "--images=3"], "--images must be at least 4 and --batch 1, got 3"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_work(experiment, capsys, args, message):
    assert solver_job(experiment, *args) == 2
    assert message in capsys.readouterr().err


def test_real_images_are_read_before_the_work(experiment, capsys):
    places = (f"--ckpt_path={experiment.checkpoint('flowar')}", "--model.report.data_dir=nowhere")
    assert solver_job(experiment, *places) == 2
    captured = capsys.readouterr()
    assert "nowhere" in captured.err and " ..." not in captured.err


@pytest.mark.parametrize(
    "config, message",
    [
        ("var", "compares flow solvers: take the config of a FlowAR generator"),
        ("kl", "takes generators, and a TokenizerModule generates nothing"),
    ],
)
def test_only_flow_heads_have_solvers(monkeypatch, capsys, config, message):
    monkeypatch.chdir(ROOT)
    assert run("benchmark", "solver", "-c", f"configs/fashion/{config}.yaml", "--ckpt_path=x") == 2
    assert message in capsys.readouterr().err
