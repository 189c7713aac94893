"""Checkpoints that users hand in are looked at before any work begins."""

import pickle
from pathlib import Path

import torch
from lightning.pytorch import LightningModule


def check_checkpoint(path: str | Path, module: LightningModule) -> None:
    """Refuse a checkpoint that is not one of this module.

    Args:
        path: Checkpoint file.
        module: What it is to be loaded into.

    Raises:
        ValueError: The file is missing, damaged, or of another model; says what differs.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"--ckpt_path {path} does not exist")
    if path.is_dir():
        return  # sharded; its strategy reads it
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        stored = checkpoint["state_dict"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint of `scalear fit`: {reason}") from None
    own = module.state_dict()
    missing = sorted(own.keys() - stored.keys())
    unknown = sorted(stored.keys() - own.keys())
    shapes = [
        f"{name} {tuple(stored[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & stored.keys()
        if stored[name].shape != own[name].shape
    ]
    if missing or unknown or shapes:
        parts = [
            f"{len(names)} {what}, such as {names[0]}"
            for what, names in (
                ("weights are missing", missing),
                ("are unknown", unknown),
                ("have another shape", sorted(shapes)),
            )
            if names
        ]
        raise ValueError(
            f"{path} is a checkpoint of another model than this config describes: {'; '.join(parts)}. "
            "Use the config that it was trained with (fit.yaml in its run's folder)"
        )
