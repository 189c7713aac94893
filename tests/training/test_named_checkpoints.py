"""What `last` and `best` mean, on checkpoints that hold nothing but what they say of themselves."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from scalear.training import named_checkpoints
from scalear.training.named_checkpoints import named_checkpoint


@pytest.fixture
def run(tmp_path) -> dict:
    """The Trainer's config of a run with four whole checkpoints in two folders, and one that is not."""
    folders = [tmp_path / "checkpoints", tmp_path / "others"]
    monitor = {"monitor": "val/loss", "best_model_path": str(folders[0] / "step-1.ckpt")}
    for step in (1, 4, 2, 3):
        path = folders[step // 3] / f"step-{step}.ckpt"
        path.parent.mkdir(exist_ok=True)
        torch.save({"global_step": step, "saved_at": float(step), "callbacks": {"ModelCheckpoint": monitor}}, path)
    (folders[0] / "broken.ckpt").write_bytes(b"PK")
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(folder)}} for folder in folders]
    return {"default_root_dir": str(tmp_path), "callbacks": callbacks}


@pytest.mark.parametrize(("name", "step"), [("last", 4), ("best", 1)])
def test_each_checkpoint_is_read_once(run, name, step, monkeypatch):
    read, load = Counter(), torch.load

    def counted(path: Path, *args, **how) -> dict:
        read[path] += 1
        return load(path, *args, **how)

    monkeypatch.setattr(named_checkpoints.torch, "load", counted)
    assert Path(named_checkpoint(name, run, "predict")).name == f"step-{step}.ckpt"
    assert len(read) == 5 and set(read.values()) == {1}


def test_what_is_not_whole_is_told_and_no_new_run_begins_over_it(run, tmp_path, caplog):
    assert Path(named_checkpoint("last", run, "predict")).name == "step-4.ckpt"
    assert f"without {tmp_path}/checkpoints/broken.ckpt, not whole" in caplog.text
    # Nothing but what they say of themselves is in them: no training can go on from one.
    with pytest.raises(ValueError, match=r"no whole checkpoint in .*: move away what is not whole, .*step-4.ckpt"):
        named_checkpoint("last", run, "fit")


def test_a_requeued_job_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="--ckpt_path hpc: there is no checkpoint of a requeued job in .*: take last"):
        named_checkpoint("hpc", {"default_root_dir": str(tmp_path / "other")}, "fit")
    torch.save({"global_step": 2, "optimizer_states": []}, tmp_path / "hpc_ckpt_7.ckpt")
    assert named_checkpoint("hpc", run, "fit") == str(tmp_path / "hpc_ckpt_7.ckpt")


def test_the_places_that_were_looked_at_are_told(tmp_path):
    run = {"default_root_dir": str(tmp_path), "callbacks": None}
    with pytest.raises(ValueError, match=f"no whole checkpoint in {tmp_path}/checkpoints: train first"):
        named_checkpoint("last", run, "predict")
    assert named_checkpoint("last", run, "fit") is None and named_checkpoint("x.ckpt", run, "predict") == "x.ckpt"
