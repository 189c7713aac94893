"""Habits that people come with: runs that are there, names of checkpoints, flags of Lightning, ends of runs."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_fixtures import ROOT, Experiment, run
from lightning.pytorch.plugins.environments import SLURMEnvironment

from scalear.commands.run_trainer import trainer_arguments
from scalear.evaluation.images import load_samples, save_samples
from scalear.tensor_files import read_tensors
from scalear.training.checkpoints import AtomicCheckpointIO


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


@pytest.fixture
def finished(experiment, tmp_path) -> Path:
    """A copy of the generator's run."""
    return shutil.copytree(experiment.root / "flowar", tmp_path / "finished")


def test_a_run_is_not_trained_over_unasked(experiment: Experiment, finished, capsys):
    before = state_of(finished)
    assert run("fit", *experiment.generator(finished)) == 2
    error = capsys.readouterr().err
    assert f"{finished} holds a run already" in error and "--ckpt_path last" in error and "--force" in error
    elsewhere = f"--ckpt_path={experiment.checkpoint('flowar')}"  # of another folder
    assert run("fit", *experiment.generator(finished), elsewhere) == 2
    assert state_of(finished) == before
    assert run("fit", *experiment.generator(finished), "--force", "--trainer.max_steps=1") == 0
    assert step_of(finished / "checkpoints/last.ckpt") == 1
    assert not yaml.safe_load((finished / "fit.yaml").read_text())["force"]  # who reads it has not asked


def test_a_tokenizer_that_is_there_counts_as_a_run(experiment: Experiment, tmp_path, capsys):
    (tmp_path / "tokenizer.safetensors").write_text("precious")
    assert run("fit", *experiment.tokenizer(tmp_path)) == 2
    assert "tokenizer.safetensors" in capsys.readouterr().err
    assert (tmp_path / "tokenizer.safetensors").read_text() == "precious"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_fast_dev_run_writes_nothing(experiment: Experiment, tmp_path, command):
    for name in ("kl", "flowar"):
        shutil.copytree(experiment.root / name, tmp_path / name, ignore=shutil.ignore_patterns("latents"))
    before = state_of(tmp_path)
    checkpoint = [] if command == "fit" else [f"--ckpt_path={tmp_path / 'kl/checkpoints/last.ckpt'}"]
    assert run(command, *experiment.tokenizer(tmp_path / "kl"), "--trainer.fast_dev_run=true", *checkpoint) == 0
    checkpoint = [] if command == "fit" else [f"--ckpt_path={tmp_path / 'flowar/checkpoints/last.ckpt'}"]
    code = run(command, *experiment.generator(tmp_path / "flowar"), "--trainer.fast_dev_run=true", *checkpoint)
    assert code == (0 if command in ("fit", "validate") else 2)  # a part of the samples is no sample set
    assert state_of(tmp_path) == before


def test_results_of_other_settings_or_weights_are_not_replaced_unasked(experiment: Experiment, finished, capsys):
    typed = [*experiment.generator(finished), "--ckpt_path=last"]
    assert run("predict", *typed) == 0
    samples = (finished / "samples.npz").read_bytes()
    assert run("predict", *typed, "--model.samples.batch_size=5", "--data.batch_size=2") == 0  # speed alone
    assert run("test", *typed) == 0 and run("test", *typed) == 0
    for command in ("predict", "test"):
        capsys.readouterr()
        assert run(command, *typed, "--model.guidance.weight=2") == 2
        assert "model.guidance.weight 4.5 there, 2.0 here" in capsys.readouterr().err
    assert (finished / "samples.npz").read_bytes() == samples
    assert run("predict", *typed, "--model.guidance.weight=2", "--force") == 0
    assert (finished / "samples.npz").read_bytes() != samples
    assert run("fit", *typed, "--trainer.max_steps=5") == 0
    capsys.readouterr()
    assert run("predict", *typed, "--model.guidance.weight=2") == 2
    assert "step 4, saved at" in capsys.readouterr().err
    save_samples(finished / "samples.npz", *load_samples(finished / "samples.npz"))  # as another program would
    assert run("predict", *typed) == 2
    assert "samples.npz is there, whose settings are not recorded" in capsys.readouterr().err
    (finished / "samples.npz").unlink(), (finished / "test.yaml").unlink()
    assert run("predict", *typed) == 2
    assert "grid.png is there, whose settings are not recorded" in capsys.readouterr().err
    (finished / "grid.png").unlink()
    assert run("test", *typed) == 2
    assert "metrics.json is there, whose settings are not recorded" in capsys.readouterr().err


def test_checkpoints_have_names(experiment: Experiment, tmp_path, capsys):
    typed = [*experiment.generator(tmp_path), "--ckpt_path=last"]
    assert run("predict", *typed) == 2
    assert f"there is no whole checkpoint in {tmp_path}/checkpoints" in capsys.readouterr().err
    monitor = {"monitor": "train/loss", "every_n_train_steps": 1, "filename": "least"}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": monitor}]
    assert run("fit", *typed, "--trainer.max_steps=2", f"--trainer.callbacks={json.dumps(callbacks)}") == 0
    assert step_of(tmp_path / "checkpoints/last.ckpt") == 2  # though no callback of the config keeps it
    assert run("fit", *typed, "--trainer.max_steps=3") == 0
    # The newest one is not the one with the youngest file, which a copy may be, and it is whole.
    last, requeued = tmp_path / "checkpoints/last.ckpt", tmp_path / "hpc_ckpt_1.ckpt"
    shutil.move(last, requeued)
    shutil.copy(tmp_path / "checkpoints/least.ckpt", tmp_path / "checkpoints/copy.ckpt")
    (tmp_path / "checkpoints/interrupted.ckpt").write_bytes(requeued.read_bytes()[:1000])
    assert run("fit", *typed, "--trainer.max_steps=4") == 0
    assert step_of(last) == 4
    assert run("predict", *typed) == 0
    assert yaml.safe_load((tmp_path / "predict.yaml").read_text())["ckpt_path"] == str(last)
    capsys.readouterr()
    assert run("predict", *experiment.generator(tmp_path), "--ckpt_path=best") == 2
    assert "chosen by a monitored value" in capsys.readouterr().err
    last.unlink(), requeued.unlink()
    best = [*experiment.generator(tmp_path), "--ckpt_path=best", "--force"]
    assert run("predict", *best) == 0
    path = yaml.safe_load((tmp_path / "predict.yaml").read_text())["ckpt_path"]
    assert path == str(tmp_path / "checkpoints/least.ckpt")


_EARLY = {"monitor": "train/loss", "min_delta": 1e9, "patience": 0, "check_on_train_epoch_end": True}
_EARLY = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": _EARLY}
ENDS = {
    "epochs": ["--trainer.max_epochs=1"],
    "time": ["--trainer.max_time=00:00:00:01", "--model.optimizer.total_steps=9999"],
    "early": [
        "--trainer.max_epochs=4",
        f"--trainer.callbacks={json.dumps([_EARLY])}",
    ],
}


@pytest.mark.parametrize("end", ENDS)
def test_however_a_run_ends_its_last_step_is_kept_and_exported(experiment: Experiment, tmp_path, end):
    """Also where the callbacks of the config keep none."""
    typed = [*experiment.tokenizer(tmp_path), "--trainer.max_steps=-1", "--trainer.limit_train_batches=2", *ENDS[end]]
    assert run("fit", *typed) == 0
    last = tmp_path / "checkpoints/last.ckpt"
    checkpoint, (exported, _) = torch.load(last, weights_only=True), read_tensors(tmp_path / "tokenizer.safetensors")
    assert checkpoint["global_step"] == {"epochs": 2, "early": 4}.get(end, checkpoint["global_step"])
    for name, tensor in exported.items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"tokenizer.{name}"]), name


def test_a_run_that_epochs_ended_goes_on_as_if_it_had_not(experiment: Experiment, tmp_path):
    def fit(folder: str, epochs: int) -> dict:
        length = ["--trainer.max_steps=-1", f"--trainer.max_epochs={epochs}", "--ckpt_path=last"]
        assert run("fit", *experiment.generator(tmp_path / folder), *length) == 0
        return torch.load(tmp_path / folder / "checkpoints/last.ckpt", weights_only=True)

    fit("halves", 1)
    resumed, straight = fit("halves", 2), fit("straight", 2)
    assert resumed["global_step"] == straight["global_step"]
    for part in ("state_dict", "current_model_state"):
        for name, tensor in straight[part].items():
            assert torch.equal(resumed[part][name], tensor), name


def test_a_tokenizer_whose_run_was_killed_before_its_export_gets_it(experiment: Experiment, tmp_path):
    shutil.copytree(experiment.root / "kl/checkpoints", tmp_path / "checkpoints")
    assert run("fit", *experiment.tokenizer(tmp_path), "--ckpt_path=last") == 0
    here, there = (read_tensors(folder / "tokenizer.safetensors")[0] for folder in (tmp_path, experiment.root / "kl"))
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_what_is_typed_on_resume_is_in_use(experiment: Experiment, tmp_path):
    short = [*experiment.generator(tmp_path), "--ckpt_path=last"]
    assert run("fit", *short, "--trainer.max_steps=2") == 0
    typed = {"lr": 0.02, "betas": [0.5, 0.6], "weight_decay": 0.5, "schedule": "linear", "warmup_steps": 0}
    changed = [f"--model.optimizer.{name}={value}" for name, value in typed.items()]
    average = ['--trainer.callbacks=[{"class_path": "EMA", "init_args": {"decay": 0.0}}]']
    assert run("fit", *short, "--trainer.max_steps=4", *changed, *average) == 0
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    decayed, plain = checkpoint["optimizer_states"][0]["param_groups"]
    for group in (decayed, plain):
        assert group["initial_lr"] == 0.02 and tuple(group["betas"]) == (0.5, 0.6)
        assert group["lr"] == 0.0  # of a linear decay at its end
    assert decayed["weight_decay"] == 0.5 and plain["weight_decay"] == 0.0
    for name, tensor in checkpoint["state_dict"].items():
        assert torch.equal(tensor, checkpoint["current_model_state"][name]), name  # an average without memory


CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
FLAGS = {
    "logger": ["--trainer.logger=false"],
    "no loggers": ["--trainer.logger=[]"],
    "default logger": ["--trainer.logger=true"],
    "progress bar": ["--trainer.enable_progress_bar=false"],
    "own progress bar": ["--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"],
    "checkpointing": ["--trainer.enable_checkpointing=false"],
    "model summary": ["--trainer.enable_model_summary=false"],
    "barebones": ["--trainer.barebones=true"],
    "logging": ["--trainer.log_every_n_steps=0"],
    "profiler": ["--trainer.profiler=simple"],
    "writer": ["--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO"],
    "learning rates": ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"],
}


@pytest.mark.parametrize("flag", FLAGS)
def test_defaults_step_back_where_a_flag_contradicts_them(experiment: Experiment, tmp_path, flag, capfd):
    typed = [*experiment.generator(tmp_path), "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    assert run("fit", *typed, *FLAGS[flag]) == 0
    assert (tmp_path / "checkpoints/last.ckpt").exists() == (flag not in ("checkpointing", "barebones"))
    assert (tmp_path / "fit.yaml").exists()
    if flag in ("progress bar", "barebones"):
        assert "it/s" not in "".join(capfd.readouterr())


def test_every_logger_gets_scalars_and_the_config(experiment: Experiment, tmp_path):
    loggers = [CSV | {"init_args": {"save_dir": str(tmp_path / name)}} for name in ("one", "two")]
    grid = ["--trainer.callbacks+=SampleGrid", "--trainer.callbacks.every_n_steps=1"]
    typed = [*experiment.generator(tmp_path), "--trainer.max_steps=2", f"--trainer.logger={json.dumps(loggers)}"]
    assert run("fit", *typed, *grid) == 0
    for name in ("one", "two"):
        (folder,) = (path.parent for path in (tmp_path / name).rglob("metrics.csv"))
        with open(folder / "metrics.csv") as file:
            assert any(row.get("train/loss") for row in csv.DictReader(file))
        hparams = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert hparams["fit"]["model"]["init_args"]["optimizer"]["lr"] == 0.01
    assert (tmp_path / "checkpoints/last.ckpt").exists() and (tmp_path / "fit.yaml").exists()  # not where loggers write


@pytest.mark.parametrize(
    "typed, message",
    [
        (["--trainer.precision=bf16-true"], "AdamW's small steps .* take --trainer.precision bf16-mixed"),
        (["--trainer.precision=64-true"], "take --trainer.precision 32-true"),
        (["--trainer.limit_train_batches=-1"], "invalid value -1 for limit_train_batches"),
        (["--trainer.gradient_clip_algorithm=no"], "`gradient_clip_algorithm` no is invalid"),
        (["--trainer.callbacks+=lightning.pytorch.callbacks.DeviceStatsMonitor", "--trainer.logger=false"], "logger"),
        (["--model.sample_posterior=1.5"], "sample_posterior"),
    ],
)
def test_mistakes_end_in_one_message(experiment: Experiment, tmp_path, typed, message, capsys):
    assert run("fit", *experiment.generator(tmp_path), *typed) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error)


def test_slurms_overlay_keeps_checkpoints_whole():
    flags = ("logger", "callbacks", "barebones", "fast_dev_run", "enable_checkpointing", "enable_progress_bar")
    plain = dict.fromkeys((*flags, "enable_model_summary"))
    plugin = yaml.safe_load((ROOT / "configs/slurm.yaml").read_text())["trainer"]["plugins"][0]
    assert plugin["class_path"].endswith("SLURMEnvironment")
    environment = SLURMEnvironment(**plugin["init_args"])
    plugins = trainer_arguments(plain | {"plugins": [environment], "default_root_dir": "x"}, False)["plugins"]
    assert plugins[0] is environment and isinstance(plugins[1], AtomicCheckpointIO)


def test_one_batch_is_one_batch(experiment: Experiment, tmp_path):
    """Where Lightning would read 1.0, which is all of them."""
    typed = [*experiment.generator(tmp_path), "--trainer.max_steps=-1", "--trainer.max_epochs=1"]
    assert run("fit", *typed, "--trainer.limit_train_batches=1") == 0
    assert step_of(tmp_path / "checkpoints/last.ckpt") == 1


@pytest.mark.parametrize(
    "typed, message",
    [
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches must be at least 1, got 0"),
        (["--trainer.devices=abc", "--trainer.accelerator=cpu"], "should be an int > 0"),
        (["--trainer.logger=5"], "trainer.logger: there is no class 5: name one of"),
    ],
)
def test_typeerrors_of_settings_end_in_one_message(experiment: Experiment, tmp_path, typed, message, capsys):
    assert run("fit", *experiment.generator(tmp_path), *typed) == 2
    assert message in capsys.readouterr().err
