"""Checkpoints on a disk that is full."""

import shutil
from pathlib import Path

import pytest
import torch
from cli_fixtures import Experiment, run

from scalear.training.checkpoints import AtomicCheckpointIO

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")


def fill_disk(checkpoint: Path) -> None:
    """What is written for this checkpoint goes to a device without space."""
    checkpoint.with_name(f".{checkpoint.name}.partial").symlink_to(FULL)


@pytest.mark.parametrize("size", [10, 1_000_000])  # fails when the file is closed, or on the way
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path, size):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(size)}, path)
    before = path.read_bytes()
    fill_disk(path)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*last.ckpt: .* Free some space and resume"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(size)}, path)
    assert path.read_bytes() == before and [path.name] == [left.name for left in tmp_path.iterdir()]


def test_a_run_on_a_full_disk_ends_in_one_message_and_continues_when_there_is_space(experiment: Experiment, capsys):
    shutil.copytree(experiment.root / "flowar", experiment.root / "full")
    checkpoint = experiment.checkpoint("full")
    before = checkpoint.read_bytes()
    longer = ["--trainer.max_steps=6", f"--ckpt_path={checkpoint}"]
    fill_disk(checkpoint)
    assert run("fit", *experiment.generator("full"), *longer) == 2
    error = capsys.readouterr().err
    message = error[error.index("scalear: error:") :]
    assert f"cannot write checkpoint {checkpoint}" in message and "No space left on device" in message
    assert "Traceback" not in error and checkpoint.read_bytes() == before
    assert run("fit", *experiment.generator("full"), *longer) == 0
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 6
