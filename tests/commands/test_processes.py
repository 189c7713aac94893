"""Runs as a shell starts them: interrupted by a signal, and on two processes."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import Experiment, run
from code_fixtures import prepare_flexvar
from process_fixtures import run_on_two_ranks, start, start_two_ranks
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalear.files import claimed


def losses(folder: Path) -> list[float]:
    return [event.value for event in EventAccumulator(str(folder)).Reload().Scalars("train/loss")]


def first_losses(folder: Path) -> dict[str, float]:
    """All that a run logged of the first step's loss, by name."""
    events = EventAccumulator(str(folder)).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith(("train/loss", "train/accuracy"))]
    return {name: event.value for name in names for event in events.Scalars(name) if event.step == 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_an_interrupted_run_saves_and_continues_as_if_it_had_not_been(experiment: Experiment, number):
    name = number.name
    process = start("fit", *experiment.generator(name), "--trainer.max_steps=100000")
    while process.returncode is None and not _has_trained(experiment.root / name):
        time.sleep(0.1)
    process.send_signal(number)
    output = process.finish()
    interrupted = experiment.checkpoint(name, "interrupted")
    assert process.returncode == 130, output
    assert "Traceback" not in output and f"Resume with: --ckpt_path {interrupted}" in output

    steps = torch.load(interrupted, weights_only=True)["global_step"] + 3
    assert 3 < steps < 100_000
    if number != signal.SIGTERM:
        return  # what is saved is the same for all of them
    length = f"--trainer.max_steps={steps}"
    assert run("fit", *experiment.generator(f"{name}-resumed"), length, f"--ckpt_path={interrupted}") == 0
    assert run("fit", *experiment.generator(f"{name}-straight"), length) == 0
    resumed, straight = (
        torch.load(experiment.checkpoint(f"{name}-{kind}"), weights_only=True) for kind in ("resumed", "straight")
    )
    assert resumed["global_step"] == straight["global_step"] == steps
    for part in ("state_dict", "current_model_state"):
        for key, tensor in straight[part].items():
            assert torch.equal(resumed[part][key], tensor), key


SLOW = """
import time
from pathlib import Path
from lightning.pytorch import Callback

class Slow(Callback):
    def on_validation_batch_end(self, trainer, *args):
        Path(trainer.default_root_dir, f"validated-{trainer.global_step}").touch()
        time.sleep(0.5)
"""


@pytest.mark.parametrize("step", [0, 2])
def test_a_signal_does_not_wait_for_the_end_of_a_validation(experiment: Experiment, tmp_path, monkeypatch, step):
    """Of which the one of step 0 comes before training: then there is nothing to save."""
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    often = ["--trainer.val_check_interval=2", "--data.eval_batch_size=1", "--trainer.callbacks+=slow.Slow"]
    often.append(f"--trainer.num_sanity_val_steps={-1 if step == 0 else 0}")
    process = start("fit", *experiment.generator(tmp_path), *often)
    while process.returncode is None and not (tmp_path / f"validated-{step}").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = process.finish()
    assert process.returncode == 130 and "Traceback" not in output, output
    interrupted = tmp_path / "checkpoints/interrupted.ckpt"
    if step == 0:
        assert "Stopped before the first step" in output and not interrupted.exists()
        return
    assert torch.load(interrupted, weights_only=True)["global_step"] == step
    assert run("fit", *experiment.generator(tmp_path), "--ckpt_path=last") == 0
    resumed, straight = (
        torch.load(path, weights_only=True)["current_model_state"]
        for path in (tmp_path / "checkpoints/last.ckpt", experiment.checkpoint("flowar"))
    )
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())


def test_a_tokenizer_that_is_trained_further_and_stopped_is_exported(experiment: Experiment, tmp_path):
    """So that file and newest checkpoint are of the same step."""
    shutil.copytree(experiment.root / "kl", tmp_path, ignore=shutil.ignore_patterns("latents"), dirs_exist_ok=True)
    longer = ["--ckpt_path=last", "--trainer.max_steps=100000", "--trainer.log_every_n_steps=1"]
    longer += ["--model.optimizer.total_steps=null", "--trainer.callbacks+=EMA"]
    for events in tmp_path.glob("events.*"):
        events.unlink()
    process = start("fit", *experiment.tokenizer(tmp_path), *longer)
    while process.returncode is None and not _has_trained(tmp_path):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = process.finish()
    assert process.returncode == 130, output
    checkpoint = torch.load(tmp_path / "checkpoints/interrupted.ckpt", weights_only=True)
    assert checkpoint["global_step"] > 3
    for name, tensor in load_file(tmp_path / "tokenizer.safetensors").items():
        assert torch.equal(checkpoint["state_dict"][f"tokenizer.{name}"], tensor), name


def test_two_ranks_train_as_one(experiment: Experiment):
    """On the same global batches: 2 x 4 and 1 x 8."""
    run_on_two_ranks("fit", *experiment.generator("two"), "--data.batch_size=4")
    one, two = losses(experiment.root / "flowar"), losses(experiment.root / "two")
    assert len(one) == 4 and one[0] != one[-1]
    assert two == pytest.approx(one, rel=0, abs=1e-5)


def test_two_ranks_are_refused_alike(experiment: Experiment, tmp_path):
    """Rank 0 alone claims the folder."""
    with claimed(tmp_path / ".fit.lock", ""):
        ranks = start_two_ranks("fit", *experiment.generator(tmp_path))
        for output in [rank.finish() for rank in ranks]:
            assert f"another process has begun to fit in {tmp_path}: wait for it" in output
            assert "Traceback" not in output
    assert [rank.returncode for rank in ranks] == [2, 2] and not (tmp_path / "checkpoints").exists()


def test_ranks_with_scales_of_their_own_train_as_one_that_accumulates(images: Path, tmp_path: Path):
    """What is logged of a scale is the mean over the ranks that have it."""
    schedules = ["--model.schedules.per_batch=true", "--model.schedules.max_between=2"]
    settings = ["--data.batch_size=4", "--trainer.log_every_n_steps=1"]
    args = ["-c", prepare_flexvar(tmp_path, images), *schedules, *settings]
    run_on_two_ranks("fit", *args, f"--trainer.default_root_dir={tmp_path / 'two'}")
    accumulating = ["--trainer.accumulate_grad_batches=2", f"--trainer.default_root_dir={tmp_path / 'accumulating'}"]
    assert run("fit", *args, *accumulating) == 0
    two, one = (torch.load(tmp_path / folder / "checkpoints/last.ckpt") for folder in ("two", "accumulating"))
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=0, atol=1e-5)

    assert run("fit", *args, "--trainer.max_steps=1", f"--trainer.default_root_dir={tmp_path / 'first'}") == 0
    parts = [first_losses(tmp_path / folder) for folder in ("first", "accumulating")]  # of positions 0 to 3, 4 to 7
    assert parts[0].keys() != parts[1].keys()
    expected = {
        name: np.mean([part[name] for part in parts if name in part]) for name in parts[0].keys() | parts[1].keys()
    }
    assert first_losses(tmp_path / "two") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["vq", "rvq"])
def test_two_ranks_train_one_codebook(experiment: Experiment, kind: str):
    """K-means at the start and codes revived at every step, on the same global batches: 2 x 4 and 1 x 8."""
    care = {
        "class_path": "scalear.training.tokenizer.codebook.CodebookCare",
        "init_args": {"revive_every": 1, "min_usage": 0.5},
    }
    settings = [f"--trainer.callbacks={json.dumps([care])}", "--trainer.precision=32-true"]
    run_on_two_ranks("fit", *experiment.code_tokenizer(kind, f"{kind}-two"), "--data.batch_size=4", *settings)
    assert run("fit", *experiment.code_tokenizer(kind, f"{kind}-one"), *settings) == 0
    one, two = (load_file(experiment.root / f"{kind}-{ranks}" / "tokenizer.safetensors") for ranks in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-3)


def test_two_ranks_cache_latents_as_one(experiment: Experiment):
    checkpoint = f"--ckpt_path={experiment.checkpoint('kl')}"
    run_on_two_ranks("predict", *experiment.tokenizer("cached-by-two"), checkpoint)
    by_two = experiment.root / "cached-by-two" / "latents"
    assert run("data", "verify", by_two, "--num_workers=0") == 0
    assert len(list(by_two.glob("train-00[01]-*.tar"))) == 2
    one, two = (_moments(folder) for folder in (experiment.latents, by_two))
    assert one.keys() == two.keys()
    for key, moments in one.items():
        torch.testing.assert_close(two[key], moments, rtol=0, atol=2e-3)  # they are stored in half precision


def _has_trained(folder: Path) -> bool:
    return folder.exists() and "train/loss" in EventAccumulator(str(folder)).Reload().Tags()["scalars"]


def _moments(folder: Path) -> dict[str, torch.Tensor]:
    from scalear.data.datamodule import ShardDataModule

    loader = ShardDataModule(str(folder), batch_size=8).predict_dataloader()[0]
    return {key: row for batch in loader for key, row in zip(batch.keys, batch.inputs, strict=True)}
