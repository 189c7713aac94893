"""`scalear tune` on a tiny trained model: what it leaves, how it goes on, and what it refuses."""

import json
import sys

import pytest
from cli_fixtures import run

from scalear.tuning.search import Goal, SearchRecord
from scalear.yaml_files import read_yaml

SPACE = "{model.sampling.num_steps: [1, 4], model.guidance.ramp: null}"
TYPED = [
    "--model.sampling.method=ab3",
    "--model.guidance.ramp=flexvar",
    "--model.guidance.flexvar_side=2",
    "--model.samples.scales=1,2,4",
]


def tune(experiment, folder, *args) -> int:
    checkpoint = f"--ckpt_path={experiment.checkpoint('flowar')}"
    how = ("--num_samples=12", f"--search={SPACE}", f"--output_dir={folder}", "--metric=is", checkpoint, *TYPED)
    return run("tune", *experiment.generator("tune"), *how, *args)


def test_a_search_goes_on_and_its_winner_is_an_overlay(experiment, tmp_path, capsys, monkeypatch):
    folder, path = tmp_path / "tune", tmp_path / "tune" / "trials.json"
    assert tune(experiment, folder, "--trials=2") == 0
    before = SearchRecord.read(path)
    assert tune(experiment, folder, "--trials=3") == 0
    after, captured = SearchRecord.read(path), capsys.readouterr()
    assert after.trials[:2] == before.trials and len(after.trials) == 3
    assert f"{path} holds 2 trials already" in captured.err and "fid: 12 samples leave the covariance" in captured.err
    first = after.trials[0]
    assert list(first.values.values()) == [4.5, None, None, 3] and {"is", "fid", "recall"} <= first.numbers.keys()

    winner = after.winner(Goal("is", "higher"))
    assert after.trials[winner].numbers["is"] == max(trial.numbers["is"] for trial in after.trials)
    assert f"| {winner} (winner)" in captured.out and "| config " in captured.out
    assert "12 samples in batches of 6, 32-true, seed 0 against half 1 of all of images val; " in captured.out
    assert "did not use, seed 1 against half 2 of all of images val:" in captured.out
    assert after.judged.keys() >= {0, winner} and after.judged[0]["is"] != first.numbers["is"]
    assert (folder / "pareto.png").stat().st_size > 10_000

    # Whoever takes the overlay samples what the search measured.
    args = [arg for arg in experiment.generator(tmp_path / "winner") if "num_steps" not in arg]  # typed, it would win
    assert run("predict", *args, "-c", folder / "winner.yaml", f"--ckpt_path={experiment.checkpoint('flowar')}") == 0
    config = read_yaml(tmp_path / "winner" / "predict.yaml")["model"]["init_args"]
    assert config["sampling"]["init_args"]["method"] == "ab3"
    assert config["samples"]["scales"] == "1,2,4"
    assert config["guidance"]["ramp"] == "flexvar" and config["guidance"]["flexvar_side"] == 2
    assert config["guidance"]["weight"] == after.trials[winner].values["model.guidance.weight"]
    assert config["sampling"]["init_args"]["num_steps"] == after.trials[winner].values["model.sampling.num_steps"]
    samples, numbers = tmp_path / "winner" / "samples.npz", tmp_path / "numbers.json"
    fashion = ("--extractor=fashion", f"--reference={experiment.images}", "--metrics", "is", f"--json={numbers}")
    assert run("evaluate", samples, *fashion) == 0
    assert json.loads(numbers.read_text())["is"] == pytest.approx(after.trials[winner].numbers["is"], rel=1e-6)

    # The folder is that of one search.
    assert tune(experiment, folder, "--model.sampling.method=euler") == 2
    said = capsys.readouterr().err
    assert f"{path} is there, of other settings (model.sampling.method ab3 there, euler here): choose another" in said
    assert "choose another --output_dir, or replace it with --force" in said
    assert SearchRecord.read(path) == after
    path.unlink()
    assert tune(experiment, folder, "--trials=2", "--seed=3") == 2  # nor is its overlay replaced
    assert "pareto.png is there already" in capsys.readouterr().err
    assert tune(experiment, folder, "--trials=2", "--seed=3", "--force") == 0
    assert len(SearchRecord.read(path).trials) == 2

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("scalear.commands.tune.search", killed)
    assert tune(experiment, folder, "--trials=2", "--seed=4", "--force") == 130
    begun = SearchRecord.read(path)
    assert begun.origin["seed"] == 4 and not begun.trials and not (folder / "winner.yaml").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["--metric=fad"], "there is no metric 'fad'; there are fid, "),
        (["--minutes=0"], "be at least 2 and --minutes positive, got 30, 12 and 0.0"),
        (
            ["--search={model.guidance.ramp: null, model.guidance.wight: [1, 2]}"],
            "--search model.guidance.wight: there is no such setting",
        ),
        (["--model.report=null"], "measures by model.report, and this config has none"),
        (["--model.report.extractor.weights=nowhere"], "nowhere"),
        (["--ckpt_path=nowhere.ckpt"], "--ckpt_path nowhere.ckpt does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(experiment, tmp_path, capsys, args, message):
    assert tune(experiment, tmp_path / "tune", *args) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("scalear: error") == 1
    assert not (tmp_path / "tune").exists()


def test_statistics_cannot_be_halved(experiment, tmp_path, capsys):
    statistics = tmp_path / "statistics.npz"
    assert run("stats", experiment.images, statistics, "--split=val", "--extractor=fashion") == 0
    assert tune(experiment, tmp_path / "tune", f"--model.report.data_dir={statistics}", "--metric=fid") == 2
    assert "halves the real images, and statistics.npz holds statistics alone: set model.rep" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["optuna", "matplotlib"])
def test_a_missing_extra_is_told_in_one_line(monkeypatch, capsys, package):
    for name in [name for name in sys.modules if name.startswith(("scalear.tuning", "scalear.commands.tune", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert run("tune", "--help") == 2
    said = f"scalear: error: scalear tune needs {package}, which is not installed: pip install 'scalear[tune]'\n"
    assert capsys.readouterr().err == said
