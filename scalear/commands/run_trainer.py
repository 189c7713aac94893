"""The Trainer of a run: what belongs to every run of ours, and steps back where a flag of Lightning contradicts it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from scalear.training.checkpoints import AtomicCheckpointIO, RunCheckpoint
from scalear.training.interruption import SaveOnInterrupt
from scalear.training.named_checkpoints import RecordTime
from scalear.training.performance import Performance
from scalear.training.run_precision import RecordPrecision


@contextmanager
def configuration_errors() -> Iterator[None]:
    """What Lightning finds wrong with a configuration, or missing for it, is a ValueError as all mistakes of users."""
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(str(error)) from error


def trainer_arguments(config: dict[str, Any], precision_is_free: bool) -> dict[str, Any]:
    """Arguments of the Trainer in place of those of the same names in a config.

    Args:
        config: `trainer`, its parts made.
        precision_is_free: `trainer.precision` was chosen by us, and may give way to a plugin.
    """
    changed: dict[str, Any] = {"logger": config["logger"], "plugins": _plugins(config["plugins"])}
    if config["barebones"]:  # Lightning refuses even what a config sets for other runs
        changed |= {"logger": False, "log_every_n_steps": None, "num_sanity_val_steps": None}
        changed |= dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    elif config["logger"] in (None, True):
        changed["logger"] = TensorBoardLogger(config["default_root_dir"], name="", version="")
    if config["fast_dev_run"]:
        changed["enable_checkpointing"] = False  # Lightning would save at the end of training
    if precision_is_free and any(isinstance(plugin, Precision) for plugin in changed["plugins"]):
        changed["precision"] = None
    return changed | {"callbacks": _callbacks(config | changed)}


def _plugins(given: Any) -> list[Any]:
    """The given ones, and checkpoints that are written completely or not at all unless one writes them otherwise."""
    plugins = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    writers = [plugin for plugin in plugins if isinstance(plugin, CheckpointIO)]
    for writer in writers:
        if isinstance(writer, _WrappingCheckpointIO) and writer.checkpoint_io is None:
            writer.checkpoint_io = AtomicCheckpointIO()
    return plugins if writers else [*plugins, AtomicCheckpointIO()]


def _callbacks(config: dict[str, Any]) -> list[Callback]:
    """Those of the config and ours, without those that a flag switches off."""
    given = config["callbacks"]
    callbacks = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    if not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    if not any(isinstance(callback, LearningRateMonitor) for callback in callbacks):
        callbacks.append(LearningRateMonitor("step"))
    if not any(isinstance(callback, ModelCheckpoint) and callback.save_last for callback in callbacks):
        callbacks.append(RunCheckpoint())
    callbacks += [Performance(), RecordPrecision(), RecordTime(), SaveOnInterrupt()]  # which saves after all others
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:  # not where a logger keeps its files
            callback.dirpath = os.path.join(config["default_root_dir"], "checkpoints")
    switched_off = {
        Checkpoint: config["enable_checkpointing"] is False,
        ProgressBar: config["enable_progress_bar"] is False,
        ModelSummary: config["enable_model_summary"] is False,
        LearningRateMonitor: config["logger"] is False or config["logger"] == [],
    }
    off = tuple(kind for kind, is_off in switched_off.items() if is_off)
    return [callback for callback in callbacks if not isinstance(callback, off)]
