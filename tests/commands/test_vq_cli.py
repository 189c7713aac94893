"""A tokenizer with a codebook through the commands that a user types."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import ROOT, Experiment, run

from scalear.data.datamodule import ShardDataModule
from scalear.tokenizers.weights import open_tokenizer


@pytest.mark.parametrize("kind", ["vq", "rvq"])
def test_fit_test_and_predict(experiment: Experiment, kind: str, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder, args = experiment.root / kind, experiment.code_tokenizer(kind, kind)
    checkpoint = f"--ckpt_path={experiment.checkpoint(kind)}"
    assert run("fit", *args) == 0
    assert run("test", *args, checkpoint) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"rfid", "psnr", "usage", "psnr_scale_1", "perplexity_scale_4"} <= metrics.keys()
    assert run("predict", *args, checkpoint) == 0
    _check_latents(folder)


def _check_latents(folder: Path) -> None:
    """Latent shards hold exactly, in float32, what the exported tokenizer encodes: codes of both are equal."""
    index = json.loads((folder / "latents" / "index.json").read_text())
    assert index["latents"]["dtype"] == "float32" and index["latents"]["moments_shape"] == [4, 4, 4]
    tokenizer = open_tokenizer(folder / "tokenizer.safetensors")
    latents = next(iter(ShardDataModule(str(folder / "latents"), batch_size=8).predict_dataloader()[0])).inputs
    images = ShardDataModule(str(folder.parent / "images"), batch_size=8, eval_batch_size=8).predict_dataloader()[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        moments = tokenizer.eval().moments(next(iter(images)).inputs)
    assert latents.dtype == torch.float32
    assert not np.array_equal(latents, latents.half().float())
    torch.testing.assert_close(latents, moments[: len(latents)], rtol=1e-2, atol=1e-2)
