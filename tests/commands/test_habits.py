"""Habits that people come with: runs that are there, names of checkpoints, flags of Lightning, ends of runs."""

import csv
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import yaml
from cli_fixtures import ROOT, Experiment, run
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import HalfPrecision
from lightning.pytorch.plugins.environments import SLURMEnvironment

from scalear.commands.running.trainer import RunTrainer, trainer_arguments
from scalear.evaluation.images import load_samples, save_samples
from scalear.files import claimed
from scalear.tensor_files import read_tensors
from scalear.training.checkpoints import AtomicCheckpointIO, check_checkpoint
from scalear.training.generator.module import GeneratorModule
from scalear.training.run_folder import check_results


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
    assert run("fit", *experiment.generator(finished), "--force", "--data.val_split=nosuch") == 2
    assert state_of(finished) == before
    assert run("fit", *experiment.generator(finished), "--force", "--trainer.max_steps=1") == 0
    assert step_of(finished / "checkpoints/last.ckpt") == 1
    assert not yaml.safe_load((finished / "fit.yaml").read_text())["force"]  # who reads it has not asked


def test_what_a_callback_keeps_elsewhere_is_a_run_too(experiment: Experiment, finished, capsys):
    elsewhere = finished.with_name("elsewhere")
    keeper = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(elsewhere)}}
    typed = f"--trainer.callbacks={json.dumps([keeper])}"
    assert run("fit", *experiment.generator(finished), typed) == 2
    assert f"{finished} holds a run already" in capsys.readouterr().err
    shutil.move(finished / "checkpoints", elsewhere)
    before = state_of(elsewhere)
    assert run("fit", *experiment.generator(finished.with_name("new")), typed) == 2
    error = capsys.readouterr().err
    assert f"{elsewhere} holds a run already" in error and "another dirpath of the callback" in error
    assert state_of(elsewhere) == before


def test_nothing_goes_on_from_a_run_that_was_replaced(experiment: Experiment, finished, monkeypatch):
    """Also where the new one is killed before it has saved anything."""
    (finished / "hpc_ckpt_1.ckpt").write_bytes((finished / "checkpoints/last.ckpt").read_bytes())

    def die(*args) -> NoReturn:
        raise SystemExit(137)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(GeneratorModule, "training_step", die)
        run("fit", *experiment.generator(finished), "--force")
    assert list(finished.rglob("*.ckpt")) == []
    assert run("fit", *experiment.generator(finished), "--ckpt_path=last", "--trainer.max_steps=2") == 0
    assert step_of(finished / "checkpoints/last.ckpt") == 2


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
    assert run("test", *typed) == 0 and run("test", *typed, "--data.latents_dir=moved") == 0  # reads none of these
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
    for left, command in (("grid.png", "predict"), ("metrics.json", "test")):
        with pytest.raises(ValueError, match=f"{left} is there, whose settings are not recorded"):
            check_results(command, finished, {})
        (finished / left).unlink()


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
    assert run("fit", *typed, "--trainer.max_steps=4", "--ckpt_path=hpc") == 0
    assert step_of(last) == 4
    last.unlink()
    assert run("fit", *typed, "--trainer.max_steps=4") == 0
    assert step_of(last) == 4
    assert run("predict", *typed) == 0
    assert yaml.safe_load((tmp_path / "predict.yaml").read_text())["ckpt_path"] == str(last)
    capsys.readouterr()
    assert run("predict", *experiment.generator(tmp_path), "--ckpt_path=best") == 2
    assert "chosen by a monitored value" in capsys.readouterr().err
    last.unlink(), requeued.unlink()
    (tmp_path / "checkpoints/interrupted.ckpt").unlink()
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


def test_a_tokenizer_beside_newer_checkpoints_is_told_until_it_is_exported(experiment: Experiment, tmp_path):
    """As a run leaves it that was lengthened and then killed."""
    shutil.copytree(experiment.root / "kl", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("latents"))
    weights, last = tmp_path / "tokenizer.safetensors", tmp_path / "checkpoints/last.ckpt"
    use = [*experiment.generator(tmp_path / "flowar"), f"--model.tokenizer.weights={weights}", "--trainer.fast_dev_run"]

    def said() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run("fit", *use, "--data.latents_dir=null") == 0
        return [str(warning.message) for warning in caught if "is the tokenizer of step" in str(warning.message)]

    assert not said()
    old = weights.read_bytes()
    longer = [*experiment.tokenizer(tmp_path), "--ckpt_path=last"]
    assert run("fit", *longer, "--trainer.max_steps=5") == 0
    weights.write_bytes(old)
    (line,) = said()
    assert f"{weights} is the tokenizer of step 3, and beside it {last} is of step 5" in line
    assert run("fit", *longer, "--trainer.max_steps=5") == 0 and weights.read_bytes() != old
    assert not said()


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
    "additions": [
        "--trainer.profiler=simple",
        "--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO",
        "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",
        "--trainer.callbacks+=lightning.pytorch.callbacks.Timer",
    ],
    "overfit": ["--trainer.overfit_batches=2"],
    "bare switches": ["--trainer.deterministic", "--trainer.enable_model_summary", "--trainer.logger"],
}


def test_an_average_that_is_not_kept_any_more_is_left(experiment: Experiment, finished, caplog):
    """Training goes on from the raw weights, of which the average was taken."""
    longer = ["--trainer.max_steps=6", "--ckpt_path=last"]
    with_average = shutil.copytree(finished, finished.with_name("with-average"))
    assert run("fit", *experiment.generator(finished), *longer, "--trainer.callbacks=null") == 0
    assert "trainer.callbacks has no EMA" in caplog.text
    assert run("fit", *experiment.generator(with_average), *longer) == 0
    plain, averaged = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (finished, with_average)
    )
    assert "current_model_state" not in plain
    for name, tensor in averaged["current_model_state"].items():
        assert torch.equal(plain["state_dict"][name], tensor), name


def test_weights_alone_are_averaged_and_not_continued(experiment: Experiment, tmp_path, capsys):
    saver = {"save_weights_only": True, "every_n_train_steps": 4, "filename": "weights"}
    saver = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}
    typed = experiment.generator(tmp_path)
    assert run("fit", *typed, f"--trainer.callbacks+={json.dumps(saver)}") == 0
    path, last = (tmp_path / f"checkpoints/{name}.ckpt" for name in ("weights", "last"))
    averaged = torch.load(last, weights_only=True)["state_dict"]
    for name, tensor in torch.load(path, weights_only=True)["state_dict"].items():
        assert torch.equal(averaged[name], tensor), name
    assert run("fit", *typed, f"--ckpt_path={path}", "--trainer.max_steps=5") == 2
    assert "weights.ckpt holds weights alone (save_weights_only)" in capsys.readouterr().err
    last.unlink()
    assert run("fit", *typed, "--ckpt_path=last", "--trainer.max_steps=5") == 2
    assert "there is no whole checkpoint" in capsys.readouterr().err
    assert run("predict", *typed, "--ckpt_path=last") == 0


def test_latents_are_written_also_by_an_overlay_of_callbacks(experiment: Experiment, tmp_path):
    checkpoint = f"--ckpt_path={experiment.checkpoint('kl')}"
    assert run("predict", *experiment.tokenizer(tmp_path), checkpoint, "--trainer.callbacks=[]") == 0
    assert (tmp_path / "latents/index.json").exists()


def test_a_command_without_batches_says_so(experiment: Experiment, tmp_path, capsys):
    typed = [*experiment.generator(tmp_path), f"--ckpt_path={experiment.checkpoint('flowar')}"]
    assert run("validate", *typed, "--trainer.limit_val_batches=0") == 2
    assert "trainer.limit_val_batches is 0, which leaves validate nothing to do" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch must be at least 1, got 0"),
        ({"gradient_clip_val": -1}, "gradient_clip_val must be at least 0, got -1"),
        ({"log_every_n_steps": -1}, "log_every_n_steps must be at least 0, got -1"),
        ({"val_check_interval": 0}, "val_check_interval is 0: limit_val_batches 0 leaves validation out"),
        ({"min_steps": 5, "max_steps": 4}, "trainer.min_steps is 5, and max_steps 4 ends the run before: raise it"),
        ({"precision": 64}, "take --trainer.precision 32-true"),
        ({"plugins": [HalfPrecision("bf16-true")]}, "take --trainer.precision bf16-mixed"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_lightning_would_take_and_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        RunTrainer(accelerator="cpu", logger=False, enable_progress_bar=False, **settings)
    RunTrainer(accelerator="cpu", logger=False, min_steps=5, fast_dev_run=1)


def test_two_runs_do_not_write_into_one_folder(experiment: Experiment, tmp_path, capsys):
    pytest.importorskip("fcntl")
    with claimed(tmp_path / ".fit.lock", "trains here"):
        assert run("fit", *experiment.generator(tmp_path)) == 2
    assert f"another process has begun to fit in {tmp_path}: wait for it" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_that_cannot_be_written_is_found_before_training(experiment: Experiment, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("fit", *experiment.generator(tmp_path / "file" / "run")) == 2
    error = capsys.readouterr().err
    assert f"cannot write into {tmp_path}/file/run" in error and "Traceback" not in error


NO_CHECKPOINTS = {
    "": "--ckpt_path {} is a folder, and no sharded checkpoint: name a file, or type last",
    "folder": "--ckpt_path {}/folder is a folder",
    "absent": "--ckpt_path {}/absent does not exist",
    "text": "{}/text is not a readable checkpoint of `scalear fit`: it is damaged, or another kind of file",
    "weights": "{}/weights is not a readable checkpoint of `scalear fit`: it has no pytorch-lightning_version",
    "objects": "it holds more than tensors and plain values (pathlib.PosixPath)",
}


def test_what_is_no_checkpoint_is_told_before_what_is_there(experiment: Experiment, finished, capsys):
    (finished / "folder").mkdir()
    (finished / "text").write_text("text")
    torch.save({"state_dict": {}}, finished / "weights")
    torch.save({"state_dict": {}, "path": Path("x")}, finished / "objects")
    for content, message in NO_CHECKPOINTS.items():
        with pytest.raises(ValueError, match=re.escape(message.format(finished))):
            check_checkpoint(finished / content, LightningModule())
    assert run("fit", *experiment.generator(finished), f"--ckpt_path={finished / 'text'}") == 2
    assert NO_CHECKPOINTS["text"].format(finished) in capsys.readouterr().err


def test_a_checkpoint_that_is_trusted_may_hold_more_than_tensors(experiment: Experiment, finished, tmp_path, capsys):
    """In commands without a Trainer, too, and by the name of the newest."""
    path = finished / "checkpoints/last.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"written_by": Path("x")}, path)
    typed = ["export", *experiment.generator(finished), f"--output_dir={tmp_path / 'model'}"]
    assert run(*typed, f"--ckpt_path={path}") == 2
    assert "if you trust its source, --weights_only false reads it" in capsys.readouterr().err
    assert run(*typed, "--ckpt_path=last", "--weights_only=false") == 0
    assert (tmp_path / "model/model.safetensors").is_file()


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
        (["--trainer.limit_train_batches=0"], "trainer.limit_train_batches is 0, which leaves fit nothing to do"),
        (["--trainer.callbacks+=EMA"], "trainer.callbacks has EMA and EMA, which average the same weights"),
        (["--trainer.callbacks+=CodebookCare"], "CodebookCare is for tokenizers, not for a GeneratorModule"),
        (["--trainer.devices=abc", "--trainer.accelerator=cpu"], "should be an int > 0"),
        (["--trainer.logger=5"], "trainer.logger: there is no class 5: name one of"),
    ],
)
def test_settings_that_cannot_work_end_in_one_message(experiment: Experiment, tmp_path, typed, message, capsys):
    assert run("fit", *experiment.generator(tmp_path), *typed) == 2
    assert message in capsys.readouterr().err
