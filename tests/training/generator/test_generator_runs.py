"""Generators through the command line: started from a file of weights, with Mamba, compiled."""

import shutil

import numpy as np
import pytest
import torch
from cli_fixtures import CLASSIFIER, NUM_CLASSES, ROOT, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalear.evaluation.images import load_samples
from scalear.tensor_files import write_tensors


def test_weights_through_the_command_line(experiment, predicted, tmp_path, caplog):
    checkpoint = torch.load(experiment.checkpoint("flowar"), weights_only=True)["state_dict"]
    tensors = {key.removeprefix("model.generator."): tensor for key, tensor in checkpoint.items()}
    text = {"num_classes": "3", "scales": "1,2,4", "num_heads": "[2, 2, 2]"}
    write_tensors(tmp_path / "g.safetensors", tensors, text)
    weights = f"--model.weights={tmp_path / 'g.safetensors'}"
    assert run("predict", *experiment.generator(tmp_path / "file"), weights) == 0
    samples = [np.load(folder / "samples.npz")["arr_0"] for folder in (tmp_path / "file", predicted)]
    assert (samples[0] == samples[1]).all()
    other = "--model.transformer.scales=[1,4]"
    assert run("fit", *experiment.generator(tmp_path / "tuned"), weights, other, "--trainer.max_steps=1") == 0
    assert "re-initialised: scales 1,2,4 in the file, 1,4 in the config" in caplog.text
    # The checkpoint of the new scales, not the file, is what is sampled then.
    tuned = tmp_path / "tuned" / "checkpoints" / "last.ckpt"
    arguments = experiment.generator(tmp_path / "tuned")
    assert run("predict", *arguments, weights, other, f"--ckpt_path={tuned}") == 0
    assert run("predict", *arguments, weights, other) == 2
    assert run("predict", *arguments) == 2


def test_mambas_laptop_config_learns_and_samples(images, tmp_path):
    """Shrunk, on random codes, through the command line: the loss falls, and averaged weights sample."""
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("fashion/flexvar", "fashion/flexvar/mamba", "debug")]
    shrunk = {
        "transformer.dim": 32,
        "transformer.depths": "[2]",
        "tokenizer.shape.channels": 32,
        "report.extractor.weights": CLASSIFIER,
    }
    settings = [f"--model.{name}={value}" for name, value in shrunk.items()]
    settings += [f"--data.data_dir={images}", f"--trainer.default_root_dir={tmp_path}"]
    assert run("fit", *configs, *settings) == 0
    events = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent)).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.5
    assert run("predict", *configs, *settings, f"--ckpt_path={tmp_path}/checkpoints/last.ckpt") == 0
    samples, labels = load_samples(tmp_path / "samples.npz")
    assert samples.shape == (2 * NUM_CLASSES, 32, 32, 1) and labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_takes_the_steps_of_an_eager_one_and_either_goes_on_from_its_checkpoint(
    experiment, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert run("fit", *experiment.generator("compiled"), "--model.compile=true") == 0
    folders = ("flowar", "compiled")
    eager, compiled = (torch.load(experiment.checkpoint(name), weights_only=False) for name in folders)
    assert list(eager["state_dict"]) == list(compiled["state_dict"])
    for one, other in zip(compiled["state_dict"].values(), eager["state_dict"].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for flag in ("true", "false"):
        checkpoint = f"--ckpt_path={experiment.checkpoint('compiled')}"
        longer = [checkpoint, f"--model.compile={flag}", f"--trainer.default_root_dir={tmp_path / flag}"]
        assert run("fit", *experiment.generator("compiled"), "--trainer.max_steps=5", *longer) == 0
        assert run("predict", *experiment.generator("compiled"), *longer) == 0
