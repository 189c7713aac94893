"""The config of a run and what is typed beside it: overlays, nulls, and settings for one thing."""

import pytest
import yaml
from cli_fixtures import ROOT, run

from scalear.commands.run import PartsOnly
from scalear.training.optim import OptimizerSettings


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


FASHION, DEBUG = "configs/fashion/flowar.yaml", "configs/debug.yaml"


@pytest.mark.parametrize(
    "files, named, part",
    [
        ([DEBUG], DEBUG, "model"),
        ([DEBUG, FASHION], DEBUG, "model"),
        (["configs/imagenet256/flowar/l.yaml"], "configs/imagenet256/flowar/l.yaml", "model"),
        (["configs/slurm.yaml"], "configs/slurm.yaml", "model"),
        (["{data}", FASHION], "{data}", "data"),
    ],
)
def test_an_overlay_without_a_config_under_it_is_told(files, named, part, tmp_path, capsys):
    places = {"data": tmp_path / "data.yaml"}
    places["data"].write_text("data: {init_args: {batch_size: 3}}")
    named = named.format(**places)
    options = [arg for file in files for arg in ("-c", file.format(**places))]
    assert run("fit", "--trainer.max_steps=1", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scalear: error: {named} is an overlay, for it names no class_path of its {part}")
    assert line.endswith(f"before it, as in -c configs/fashion/flowar.yaml -c {named}")


def optimizer(tmp_path, settings: dict, *typed: str) -> OptimizerSettings:
    """Of a config that says these things of it, and a command line."""
    config = yaml.safe_load((ROOT / FASHION).read_text())
    config["model"]["init_args"]["optimizer"] = settings
    config["model"]["init_args"]["tokenizer"]["init_args"]["weights"] = None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return PartsOnly([*typed, "-c", str(tmp_path / "config.yaml")]).config_init.model.optimizer


@pytest.mark.parametrize(
    "settings, typed, expected",
    [
        ({"lr": 0.005}, ["--model.optimizer.base_lr", "2e-4"], {"lr": None, "base_lr": 2e-4}),
        ({"base_lr": 2e-4}, ["--model.optimizer.lr=0.005"], {"lr": 0.005}),
        ({"lr": 0.005}, ["--model.optimizer.lr=0.01"], {"lr": 0.01}),
        (
            {"warmup_steps": 5, "warmup_epochs": 2.0},
            ["--model.optimizer.warmup_ratio=0.1"],
            {"warmup_steps": None, "warmup_epochs": None, "warmup_ratio": 0.1},
        ),
        ({"final_lr": 1e-5}, ["--model.optimizer.final_lr_ratio=0.1"], {"final_lr": None, "final_lr_ratio": 0.1}),
        (
            {"lr": 0.005},
            ["--model.optimizer.lr=null", "--model.init_args.optimizer.base_lr=2e-4"],
            {"lr": None, "base_lr": 2e-4},
        ),
    ],
)
def test_what_is_typed_of_an_optimizer_takes_the_place_of_what_a_config_says_otherwise(
    tmp_path, settings, typed, expected
):
    made = optimizer(tmp_path, settings, *typed)
    assert {name: getattr(made, name) for name in expected} == expected


def test_two_ways_to_say_one_thing_are_not_both_typed(capsys):
    both = ["--model.optimizer.base_lr", "2e-4", "--model.optimizer.lr=0.005"]
    assert run("fit", "-c", FASHION, *both) == 2
    told = "--model.optimizer.lr and --model.optimizer.base_lr are two ways to say one thing: type one of them\n"
    assert capsys.readouterr().err == f"scalear: error: {told}"


def test_an_optimizer_is_not_null(capsys):
    assert run("fit", "-c", FASHION, "--model.optimizer=null") == 2
    assert capsys.readouterr().err == "scalear: error: model.optimizer cannot be null: write {} for its defaults\n"
