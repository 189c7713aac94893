"""Overlays that change what a generator is made of, through the commands that a user types."""

import numpy as np
import pytest
import torch
from cli_fixtures import ROOT, Experiment, run

from scalear.evaluation.images import load_samples
from scalear.interop.hub.pretrained import ScaleARModel

# What is typed holds over a file: settings of the tiny experiment that the overlays choose themselves or do not have.
CASES = {
    "per-token diffusion": ("--model.head.network.num_heads",),
    "dit": ("--model.transformer.depths",),
    "image-pyramid": ("--data.latents_dir",),
    "sequence text": (),
}


@pytest.mark.parametrize("overlays", CASES)
def test_fit_predict_and_export(experiment: Experiment, overlays):
    files = [arg for name in overlays.split() for arg in ("-c", str(ROOT / f"configs/fashion/flowar/{name}.yaml"))]
    typed = [arg for arg in experiment.generator(overlays) if not arg.startswith(CASES[overlays] or ("none",))]
    assert run("fit", *typed, *files) == 0
    checkpoint = experiment.checkpoint(overlays)
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 4
    assert run("predict", *typed, *files, f"--ckpt_path={checkpoint}") == 0
    images, labels = load_samples(experiment.root / overlays / "samples.npz")
    assert images.shape == (12, 32, 32, 1) and images.std() > 0 and labels.tolist() == [0, 1, 2] * 4
    folder = experiment.root / f"{overlays} exported"
    assert run("export", *typed, *files, f"--ckpt_path={checkpoint}", f"--output_dir={folder}") == 0
    again = ScaleARModel.from_pretrained(folder).generate(labels.tolist(), output_type="np", precision="32-true")
    assert np.abs(again.astype(int) - images).max() <= 1  # a level, where rounding decides


def test_smaller_images_are_not_made_of_cached_latents(experiment: Experiment, capsys):
    overlay = str(ROOT / "configs/fashion/flowar/image-pyramid.yaml")
    assert run("fit", *experiment.generator("refused"), "-c", overlay) == 2  # which types data.latents_dir
    error = capsys.readouterr().err
    assert "scales 1,2,4 of images, and cannot of a latent of 4x4 cells: set data.latents_dir to null" in error
