"""`trainer.precision: auto`: what a run takes, settled before its Trainer is built."""

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from scalear.distributed.ranks import text_of_rank_zero
from scalear.hardware.precision import AUTO, fastest, is_emulated, measured, warn_of_emulation

_RECORD = "precision"  # key in checkpoints


def resolve_precision(precision: Any, accelerator: Any, resumed: str | Path | None = None) -> tuple[Any, str]:
    """The precision of a run, and a line that says why it is not the one that was asked for, or empty text.

    Args:
        precision: `trainer.precision`; all but `auto` stays what it is.
        accelerator: `trainer.accelerator`.
        resumed: Checkpoint of the run that goes on, if one does.

    Raises:
        ValueError: The run that goes on was trained in bfloat16, which is only emulated here.
    """
    device = _device(accelerator)
    if precision != AUTO:
        warn_of_emulation(precision, device)
        return precision, ""
    recorded = _recorded(resumed)
    if recorded is None:
        precision, _, why = text_of_rank_zero(lambda: f"{fastest(device)}|{measured(device)}").partition("|")
        return precision, f"precision {precision}: {why}"
    if is_emulated(recorded, device):
        raise ValueError(
            f"{resumed} was trained in {recorded}, but {measured(device)}: resume it where bf16 is fast, or go on in "
            f"float32 with --trainer.precision 32-true, which rounds otherwise"
        )
    return recorded, f"precision {recorded}: that of {resumed}"


def check_precision(precision: str) -> None:
    """Refuse a Trainer's precision of which the weights would not be float32.

    Raises:
        ValueError: Says what to take instead.
    """
    if not precision.endswith("-true") or precision == "32-true":
        return
    mixed = {"bf16-true": "bf16-mixed", "16-true": "16-mixed"}.get(precision, "32-true")
    why = "are below what such weights can resolve" if mixed != "32-true" else "gain nothing from it"
    raise ValueError(
        f"trainer.precision {precision} keeps the weights in that precision, and AdamW's small steps and the "
        f"average of weights {why}; images, noise and statistics are float32, too: take --trainer.precision {mixed}"
    )


class RecordPrecision(Callback):
    """Writes down in every checkpoint what a resumed run is to take."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RECORD] = str(trainer.precision)


def _recorded(path: str | Path | None) -> str | None:
    if path is None:
        return None
    file = Path(path, "meta.pt") if Path(path).is_dir() else Path(path)  # a sharded one keeps it there
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True).get(_RECORD)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, ValueError):
        return None  # check_checkpoint will say what is wrong with it


def _device(accelerator: Any) -> torch.device:
    """Where a Trainer will run, by its `accelerator`."""
    there = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator == "cpu" or there is None else there
