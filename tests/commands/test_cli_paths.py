"""Roads through the real command line that the shipped experiments do not take."""

import json
import shutil

import numpy as np
import pytest
from cli_fixtures import Experiment, run

from scalear.evaluation.images import load_samples


def test_a_flat_folder_without_classes_trains_and_samples(experiment: Experiment):
    flat, shards, folder = (experiment.root / name for name in ("flat", "unlabelled", "flat-run"))
    flat.mkdir()
    for path in (experiment.root / "folders").glob("*/*.png"):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    source = ("--source=ImageFolder", f"--source.root={flat}", "--source.val_fraction=0.5", "--shard_size=12")
    assert run("data", "pack", *source, f"--output_dir={shards}", "--image_size=32", "--image_channels=1") == 0
    assert json.loads((shards / "index.json").read_text())["class_names"] == []

    args = [*experiment.generator(folder), f"--data.data_dir={shards}", "--data.latents_dir=null"]
    assert run("fit", *args, "--trainer.max_steps=2") == 0
    checkpoint = f"--ckpt_path={experiment.checkpoint(folder)}"
    assert run("predict", *args, checkpoint) == 0
    images, labels = load_samples(folder / "samples.npz")
    assert images.shape == (4, 32, 32, 1) and labels.tolist() == [0] * 4  # the null class, the only one
    assert run("test", *args, checkpoint) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "fid" in metrics and not {"accuracy", "variety_min"} & metrics.keys()  # there is no class to compare


@pytest.mark.parametrize("method", ["heun", "midpoint"])
def test_solvers_of_second_order_can_be_typed(experiment: Experiment, method):
    images = {}
    for name in ("euler", method):
        folder = experiment.root / f"by-{name}"
        args = (f"--ckpt_path={experiment.checkpoint('flowar')}", f"--model.sampling.method={name}")
        assert run("predict", *experiment.generator(folder), *args) == 0
        images[name], labels = load_samples(folder / "samples.npz")
        assert labels.tolist() == [0, 1, 2] * 4
    difference = np.abs(images["euler"].astype(int) - images[method])
    assert 0 < difference.mean() < 20  # another way to about the same images
