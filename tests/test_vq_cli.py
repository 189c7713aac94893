"""A tokenizer with a codebook through the commands that a user types."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import CLASSIFIER, ROOT, Experiment, run

from scalear.data.datamodule import ShardDataModule
from scalear.tokenizers.vq import ResidualVQTokenizer, VQTokenizer

SHAPE = {"image_channels": 1, "latent_channels": 4, "num_codes": 32, "channels": 32, "patch_size": 8}
KINDS = {
    "vq": (VQTokenizer, {"feature_channels": 8, "normalise_codes": False}),
    "rvq": (ResidualVQTokenizer, {"scales": [1, 2, 4], "conv_size": 1}),
}


def command(experiment: Experiment, kind: str) -> list[str]:
    settings = {f"model.tokenizer.{name}": value for name, value in (SHAPE | KINDS[kind][1]).items()}
    settings |= {
        "model.rfid.extractor.weights": CLASSIFIER,
        "model.optimizer.warmup_steps": 1,
        "model.optimizer.total_steps": 3,
        "data.data_dir": experiment.images,
        "data.batch_size": 8,
        "trainer.max_steps": 3,
        "trainer.default_root_dir": experiment.root / kind,
    }
    if kind == "vq":
        settings |= {"model.scales": [1, 2, 4]}
    return [
        "-c",
        str(ROOT / f"configs/fashion/{kind}.yaml"),
        *(f"--{name}={value}" for name, value in settings.items()),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_fit_test_and_predict(experiment: Experiment, kind: str, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder, args = experiment.root / kind, command(experiment, kind)
    checkpoint = f"--ckpt_path={experiment.checkpoint(kind)}"
    assert run("fit", *args) == 0
    assert run("test", *args, checkpoint) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"val/rfid", "val/psnr", "val/usage", "val/psnr_scale_1", "val/perplexity_scale_4"} <= metrics.keys()
    assert run("predict", *args, checkpoint) == 0
    _check_latents(folder, kind)


def _check_latents(folder: Path, kind: str) -> None:
    """Latent shards hold exactly, in float32, what the exported tokenizer encodes: codes of both are equal."""
    index = json.loads((folder / "latents" / "index.json").read_text())
    assert index["latents"]["dtype"] == "float32" and index["latents"]["moments_shape"] == [4, 4, 4]
    make, settings = KINDS[kind]
    tokenizer = make(**SHAPE | settings, num_res_blocks=1, channel_multipliers=(1,), patch_shortcut=True)
    tokenizer.weights = str(folder / "tokenizer.safetensors")
    tokenizer.load_weights()
    latents = next(iter(ShardDataModule(str(folder / "latents"), batch_size=8).predict_dataloader()[0])).inputs
    images = ShardDataModule(str(folder.parent / "images"), batch_size=8, eval_batch_size=8).predict_dataloader()[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        moments = tokenizer.eval().moments(next(iter(images)).inputs)
    assert latents.dtype == torch.float32
    assert not np.array_equal(latents, latents.half().float())
    torch.testing.assert_close(latents, moments[: len(latents)], rtol=1e-2, atol=1e-2)
