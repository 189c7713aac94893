"""The examples of docs/extending.md, each put into a file and used by its class path alone."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import ROOT, run

from scalear.data.index import DatasetIndex
from scalear.evaluation.images import load_samples
from scalear.interop.hub.pretrained import ScaleARModel

PAGE = (ROOT / "docs/extending.md").read_text()
FILES = {name: f"# {name}{rest}" for name, rest in re.findall(r"^```\w+\n# (\w+\.\w+)(.*?)^```", PAGE, re.M | re.S)}

# What is typed holds over a file, but these are settings of a flow head, and of a transformer.
FOREIGN = {
    "gaussian_head": ("--model.head", "--model.sampling"),
    "per_token": ("--model.head.network.depth", "--model.head.network.num_heads"),
}


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """Writes the files of an example to where Python finds them; gives its config, if it has one."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str) -> Path:
        for file in (f"{name}.py", f"{name}.yaml"):
            if file in FILES:
                (tmp_path / file).write_text(FILES[file])
        return tmp_path / f"{name}.yaml"

    yield write
    for name in {Path(file).stem for file in FILES} & set(sys.modules) - before:
        del sys.modules[name]


def test_every_example_is_tried_here():
    tried = {name for mark in test_a_part_of_a_generator_trains_and_samples.pytestmark for name, *_ in mark.args[1]}
    tried |= {"fixed_noise", "array_file", "mean_distance"}
    assert {Path(name).stem for name in FILES} == tried


@pytest.mark.parametrize(
    "name, part, parameter",
    [
        ("first_token", "first_token.FirstToken", "head.network.blocks.0.modulation.weight"),
        ("per_token", "per_token.PerToken", "head.network.mlp.3.weight"),
        ("gaussian_head", "gaussian_head.GaussianHead", "head.mlp.2.weight"),
        ("doubling", "doubling.DoublingPyramid", None),
    ],
)
def test_a_part_of_a_generator_trains_and_samples(experiment, extension, name, part, parameter):
    config = extension(name)
    typed = [arg for arg in experiment.generator(name) if not arg.startswith(FOREIGN.get(name, ()))]
    args = (*typed, "-c", config)
    assert run("fit", *args, "--trainer.max_steps=2") == 0
    checkpoint = experiment.checkpoint(name)
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 2
    if parameter is not None:
        assert state["state_dict"][f"model.generator.{parameter}"].any()
    assert run("predict", *args, f"--ckpt_path={checkpoint}") == 0
    images, labels = load_samples(experiment.root / name / "samples.npz")
    assert images.shape == (12, 32, 32, 1) and images.std() > 0 and labels.tolist() == [0, 1, 2] * 4
    assert f"class_path: {part}\n" in (experiment.root / name / "fit.yaml").read_text()

    folder = experiment.root / f"{name}_exported"
    assert run("export", *args, f"--ckpt_path={checkpoint}", f"--output_dir={folder}") == 0
    model = ScaleARModel.from_pretrained(folder)
    again = model.generate(labels.tolist(), output_type="np", precision="32-true")
    assert np.abs(again.astype(int) - images).max() <= 1  # a level, where rounding decides
    del sys.modules[name]
    with pytest.raises(ValueError, match=rf"{part} is not a part of scalear: .* import {name} first"):
        ScaleARModel.from_pretrained(folder)


def test_the_doubling_pyramid_refuses_other_scales(experiment, extension, capsys):
    config = extension("doubling")
    args = (*experiment.generator("doubling_refused"), "-c", config, "--model.transformer.scales=[1,3,4]")
    assert run("fit", *args) == 2
    assert "needs scales that double, such as 1,2,4,8, got 1,3,4" in capsys.readouterr().err


def test_a_bottleneck_trains_and_its_latents_are_cached(experiment, extension):
    args = (*experiment.tokenizer("fixed_noise"), "-c", extension("fixed_noise"))
    assert run("fit", *args, "--trainer.max_steps=2") == 0
    assert run("predict", *args, f"--ckpt_path={experiment.checkpoint('fixed_noise')}") == 0
    index = DatasetIndex.load(experiment.root / "fixed_noise" / "latents")
    assert index.kind == "latents" and tuple(index.latents.moments_shape) == (4, 4, 4)


def test_a_source_is_packed(extension, tmp_path):
    extension("array_file")
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", images=images, labels=np.arange(12) % 3)
    source = ("--source=array_file.ArrayFile", f"--source.path={tmp_path / 'digits.npz'}", "--source.num_val=3")
    packed = tmp_path / "packed"
    assert run("data", "pack", *source, f"--output_dir={packed}", "--image_size=32", "--num_workers=0") == 0
    index = DatasetIndex.load(packed)
    assert index.class_names == ["0", "1", "2"] and index.image_channels == 1
    assert run("data", "verify", packed, "--num_workers=0") == 0


def test_a_metric_stands_beside_the_others(experiment, extension):
    config = extension("mean_distance")
    args = (*experiment.generator("mean_distance"), "-c", config, f"--ckpt_path={experiment.checkpoint('flowar')}")
    assert run("test", *args) == 0
    metrics = json.loads((experiment.root / "mean_distance" / "metrics.json").read_text())
    assert metrics["mean_distance"] > 0 and metrics["fid"] > 0
