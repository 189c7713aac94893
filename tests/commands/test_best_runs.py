"""Runs that keep their best checkpoint, through the command line."""

import json
from pathlib import Path

import pytest
import torch
from cli_fixtures import Experiment, run
from process_fixtures import run_on_two_ranks
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCORE = ["--trainer.callbacks+=SampleScore", "--trainer.callbacks.every_n_steps=4", "--trainer.callbacks.count=12"]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def logged(folder: Path, name: str) -> dict[int, float]:
    """What a run logged, by step."""
    return {event.step: event.value for event in EventAccumulator(str(folder)).Reload().Scalars(name)}


def test_two_ranks_measure_as_one_what_a_killed_run_could_not_and_the_best_is_found(experiment: Experiment, tmp_path):
    resumed = [*SCORE, f"--ckpt_path={experiment.checkpoint('flowar')}", "--trainer.max_steps=5"]
    batches = "--model.samples.batch_size=5"  # three, of which the last is smaller
    one, two = tmp_path / "one", tmp_path / "two"
    run_on_two_ranks("fit", *experiment.generator(two), *resumed, batches, "--data.batch_size=4")
    assert run("fit", *experiment.generator(one), *resumed, batches) == 0
    scores = logged(one, "val/fid_12")
    assert list(scores) == [4, 5] and logged(two, "val/fid_12") == pytest.approx(scores, rel=1e-6)

    assert run("test", *experiment.generator(two), batches, "--ckpt_path=best") == 0
    assert json.loads((two / "metrics.json").read_text())["fid"] == pytest.approx(min(scores.values()), rel=1e-4)
    steps = [load(experiment.checkpoint(two, name))["global_step"] for name in ("best", "last")]
    assert steps == [min(scores, key=scores.get), 5]


def test_a_tokenizer_keeps_its_best_rfid_and_exports_it(experiment: Experiment, tmp_path):
    assert run("fit", *experiment.tokenizer(tmp_path), "--trainer.val_check_interval=1") == 0
    scores = logged(tmp_path, "val/rfid")
    best = load(tmp_path / "checkpoints/best.ckpt")
    assert len(scores) == 3 and best["global_step"] == 1 + min(scores, key=scores.get) == 2  # of three
    last = load(tmp_path / "checkpoints/last.ckpt")
    for checkpoint, name in ((best, "tokenizer-best"), (last, "tokenizer")):
        for tensor, value in load_file(tmp_path / f"{name}.safetensors").items():
            assert torch.equal(checkpoint["state_dict"][f"tokenizer.{tensor}"], value), tensor
    assert not torch.equal(*(c["state_dict"]["tokenizer.latent_std"] for c in (best, last)))
    assert run("predict", *experiment.tokenizer(tmp_path), "--ckpt_path=best") == 0  # latents of the exported one
    weights = f"--model.tokenizer.weights={tmp_path / 'tokenizer-best.safetensors'}"
    latents = f"--data.latents_dir={tmp_path / 'latents'}"
    assert run("fit", *experiment.generator(tmp_path / "of-best"), weights, latents, "--trainer.max_steps=1") == 0
