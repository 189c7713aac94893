import subprocess
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from cli_fixtures import Experiment, run, write_folders

from scalear.hardware import precision
from scalear.hardware.cpus import allowed_cpus

# Tiny tensors are faster so; and sums over other numbers of threads differ in the last bit between processes.
torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: each worker computes on one thread, and takes about a gigabyte."""
    return min(allowed_cpus(), 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What types commands, or needs the experiment below or its images, is about the whole."""
    for item in items:
        types_commands = getattr(item.module, "run", None) is run and "run" in item.function.__code__.co_names
        if types_commands or "packed" in item.fixturenames:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
def _processes_are_marked(request, monkeypatch):
    """So that `make test-fast` stays fast; forked processes cost little."""
    if request.node.get_closest_marker("integration") is None:
        monkeypatch.setattr(subprocess.Popen, "__init__", _refuse)
        monkeypatch.setattr(SpawnProcess, "_Popen", staticmethod(_refuse))


def _refuse(*args, **kwargs) -> NoReturn:
    pytest.fail("a test that starts a process needs @pytest.mark.integration")


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


@pytest.fixture(scope="session")
def predicted(experiment) -> Path:
    """What `predict` leaves of the generator's run."""
    typed = (*experiment.generator("predicted"), f"--ckpt_path={experiment.checkpoint('flowar')}")
    assert run("predict", *typed) == 0
    return experiment.root / "predicted"


@pytest.fixture
def gain(monkeypatch):
    """Pretends that bfloat16 products are so many times as fast as float32's."""
    return lambda factor: monkeypatch.setattr(precision, "bf16_gain", lambda device_type: factor)
