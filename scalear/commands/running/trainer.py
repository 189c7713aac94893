"""The Trainer of a run: what belongs to every run of ours, and steps back where a flag of Lightning contradicts it."""

import os
from datetime import timedelta
from typing import Any, Literal

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    Checkpoint,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    StochasticWeightAveraging,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from scalear.data.accumulation import check_accumulation
from scalear.training.checkpoints import AtomicCheckpointIO, RunCheckpoint
from scalear.training.interruption import SaveOnInterrupt
from scalear.training.loggers import RunLogger
from scalear.training.named_checkpoints import RecordTime
from scalear.training.performance import Performance
from scalear.training.run_precision import RecordPrecision, check_precision


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

    Raises:
        ValueError: A setting cannot work that Lightning would take.
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
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"trainer.{name} must be at least {least}, got {value}")
        if self.gradient_clip_algorithm is not None and not self.gradient_clip_val:
            raise ValueError(
                f"trainer.gradient_clip_algorithm {self.gradient_clip_algorithm.value} is not used, for "
                "trainer.gradient_clip_val is not set: set it, or leave this out"
            )
        if self.val_check_interval == 0:
            raise ValueError("trainer.val_check_interval is 0: limit_val_batches 0 leaves validation out")
        for least, most in (("min_steps", "max_steps"), ("min_epochs", "max_epochs")):
            wanted, end = getattr(self, least) or 0, getattr(self, most)
            if end is not None and -1 != end < wanted and not self.fast_dev_run:
                raise ValueError(f"trainer.{least} is {wanted}, and {most} {end} ends the run before: raise it")
        check_precision(self.precision)
        check_accumulation(self)
        for callback in self.callbacks:
            _check_recipe(callback)


def _check_recipe(callback: Callback) -> None:
    """Refuse callbacks that change the batch or the learning rate behind the config that names them."""
    name = type(callback).__name__
    if isinstance(callback, BatchSizeFinder):
        raise ValueError(
            f"{name} would change the batch, from which learning rate and length of the run follow: find out what fits "
            "with scalear benchmark train -c CONFIG --batch N, then set data.batch_size, and remove the callback from "
            "trainer.callbacks"
        )
    if isinstance(callback, LearningRateFinder):
        raise ValueError(
            f"{name}: the module should have one of these fields: ('lr', 'learning_rate'), and here the learning rate "
            "is a function of the step: set model.optimizer.lr, and remove the callback from trainer.callbacks"
        )


_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}


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
        changed["logger"] = RunLogger(config["default_root_dir"])
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
    averages = [callback for callback in callbacks if isinstance(callback, WeightAveraging | StochasticWeightAveraging)]
    if len(averages) > 1:
        named = " and ".join(type(callback).__name__ for callback in averages)
        raise ValueError(f"trainer.callbacks has {named}, which average the same weights: keep one of them")
    if not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(TQDMProgressBar(refresh_rate=10))
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
