from pathlib import Path

import pytest
import torch
from cli_fixtures import Experiment, run, write_folders

# Tiny tensors are faster so; and sums over other numbers of threads differ in the last bit between processes.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Experiment:
    """Packed images, and places for all that is made of them."""
    made = Experiment(tmp_path_factory.mktemp("experiment"))
    write_folders(made.root / "folders")
    source = ("--source=ImageFolder", f"--source.root={made.root / 'folders'}", "--source.val_fraction=0.25")
    shards = ("--image_size=32", "--image_channels=1", "--shard_size=10", "--num_workers=0")
    assert run("data", "pack", *source, *shards, f"--output_dir={made.images}") == 0
    return made


@pytest.fixture(scope="session")
def images(packed) -> Path:
    """A small dataset of 32x32 grey images."""
    return packed.images


@pytest.fixture(scope="session")
def experiment(packed) -> Experiment:
    """A tokenizer trained on the packed images, its latents, and a generator trained on those in `flowar`."""
    made = packed
    assert run("fit", *made.tokenizer()) == 0
    assert run("predict", *made.tokenizer(), f"--ckpt_path={made.checkpoint('kl')}") == 0
    assert run("fit", *made.generator("flowar")) == 0
    return made
