"""`trainer.precision: auto`: what a run takes, settled before its Trainer is built."""

import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from scalear.distributed.ranks import text_of_rank_zero
from scalear.hardware.precision import AUTO, fastest, is_emulated, measured, warn_of_emulation

_RECORD = "precision"  # key in checkpoints


class RunTrainer(Trainer):
    """Lightning's Trainer; of batches a whole number is a number, also 1, and 1.0 is all of them.

    Args:
        limit_train_batches: As in `lightning.pytorch.Trainer`, as are the next five.
        limit_val_batches: The same.
        limit_test_batches: The same.
        limit_predict_batches: The same.
        overfit_batches: The same.
        val_check_interval: The same.
        precision: `auto` is `bf16-mixed` where bfloat16 products are at least 1.5 times as fast as float32's, by
            measurement, else `32-true`; a resumed run keeps its precision. Or what Lightning takes: `32-true`,
            `bf16-mixed`, `16-mixed` ...
        **kwargs: As in `lightning.pytorch.Trainer`.
    """

    # Lightning's own annotations have float first, which would make 1.0 of 1.
    def __init__(
        self,
        *,
        precision: _PRECISION_INPUT | Literal["auto"] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("accumulate_grad_batches", 1) < 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches must be at least 1, got {kwargs['accumulate_grad_batches']}"
            )
        super().__init__(
            precision=precision,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            overfit_batches=overfit_batches,
            val_check_interval=val_check_interval,
            **kwargs,
        )


def resolve_precision(precision: Any, accelerator: Any, resumed: str | Path | None = None) -> tuple[Any, str]:
    """The precision of a run, and a line that says why it is not the one that was asked for, or empty text.

    Args:
        precision: `trainer.precision`; all but `auto` stays what it is.
        accelerator: `trainer.accelerator`.
        resumed: Checkpoint of the run that goes on, if one does.

    Raises:
        ValueError: The run that goes on was trained in bfloat16, which is only emulated here. Or weights would be kept
            in another precision than float32.
    """
    if str(precision).endswith("-true") and precision != "32-true":
        mixed = {"bf16-true": "bf16-mixed", "16-true": "16-mixed"}.get(precision, "32-true")
        why = "are below what such weights can resolve" if mixed != "32-true" else "gain nothing from it"
        raise ValueError(
            f"trainer.precision {precision} keeps the weights in that precision, and AdamW's small steps and the "
            f"average of weights {why}; images, noise and statistics are float32, too: take --trainer.precision {mixed}"
        )
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
