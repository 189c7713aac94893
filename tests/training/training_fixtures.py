"""Trainers of tests, and what they must be able to do."""

from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer


def make_trainer(folder: Path, **settings) -> Trainer:
    """One that writes nothing but what is asked for."""
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    fixed = {"accelerator": "cpu", "use_distributed_sampler": False, "reload_dataloaders_every_n_epochs": 1}
    fixed |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": folder}
    return Trainer(**plain | fixed | settings)


def assert_resumes_exactly(fit: Callable[..., LightningModule], folder: Path) -> None:
    """Six steps give the same weights as three and three.

    Args:
        fit: Called with the name of a folder, the steps and the checkpoint to begin from; leaves `end.ckpt` in it.
        folder: Where these folders are.
    """
    straight = fit("straight", 6).state_dict()
    fit("first", 3)
    resumed = fit("second", 6, folder / "first" / "end.ckpt").state_dict()
    for name, tensor in straight.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0)
