"""Checkpoints: written completely or not at all, and looked at before any work begins."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from scalear.files import atomic_file
from scalear.training.named_checkpoints import metadata


class RunCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/last.ckpt` of a run up to date, always including the last step.

    Lightning's own callback leaves out the last step unless `every_n_train_steps` divides it, and writes
    `last-v1.ckpt` when a run is repeated in the same folder.

    Args:
        every_n_train_steps: Optimizer steps between saves.
        keep: Further checkpoints to keep, the newest ones, named by step; -1 keeps all.
    """

    def __init__(self, every_n_train_steps: int = 1000, keep: int = 0) -> None:
        super().__init__(
            every_n_train_steps=every_n_train_steps, save_last=True, save_top_k=keep, enable_version_counter=False
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        # Here and not at the end of training, where weight averaging has replaced the raw weights already.
        if trainer.global_step == trainer.max_steps:
            save_last_step(self, trainer)


class BestCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt` of a run: that of the validation with the best value.

    A resumed run asks the file how good it is, which may be newer than the checkpoint that is resumed, or than this
    callback in it: nothing worse replaces it. Lightning's own callback believes that checkpoint.

    Args:
        monitor: Name of the value, such as `val/rfid`.
        mode: Whether the smallest value is the best, or the largest.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"] = "min") -> None:
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=False, enable_version_counter=False
        )
        self._told = False  # that there is no such value

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        keepers = [type(c).__name__ for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
        if len(keepers) > 1:
            raise ValueError(f"trainer.callbacks has {' and '.join(keepers)}, which all keep best.ckpt: leave one")
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
        elif trainer.state.fn == TrainerFn.FITTING and not (trainer.sanity_checking or self._told):
            self._told = True
            found = ", ".join(name for name in trainer.callback_metrics if name.startswith("val/"))
            rank_zero_info(f"\nno best.ckpt is kept: there is no {self.monitor}, only {found or 'nothing'}")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        path, score = self.format_checkpoint_name({}), None
        if trainer.is_global_zero and continues(trainer, trainer.ckpt_path):  # other ranks may have another disk
            stored = metadata(Path(path)).get("callbacks", {}).get(self.state_key)
            score = stored and stored["best_model_score"].clone()  # apart from the file, which may be replaced
        score = trainer.strategy.broadcast(score)
        if score is not None:
            self.best_model_path = self.kth_best_model_path = path  # the run may have been moved
            self.best_model_score = self.kth_value = score
            self.best_k_models = {path: score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the file itself was asked."""


def continues(trainer: Trainer, ckpt_path: str | Path | None) -> bool:
    """Whether a run goes on in its own folder. Without a checkpoint, or from that of another folder, a new one begins.

    Args:
        trainer: Knows the folders of the run.
        ckpt_path: The checkpoint that the run begins from.
    """
    folders = [Path(trainer.default_root_dir), *checkpoint_folders(trainer)]
    return ckpt_path is not None and Path(ckpt_path).resolve().parent in [folder.resolve() for folder in folders]


def checkpoint_folders(trainer: Trainer) -> list[Path]:
    """Where a run keeps checkpoints, whether or not it does: its own folder for them, and those of other callbacks."""
    keepers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    own = Path(trainer.default_root_dir, "checkpoints")
    return list(dict.fromkeys([own, *(Path(keeper.dirpath) for keeper in keepers if keeper.dirpath)]))


def save_last_step(callback: ModelCheckpoint, trainer: Trainer) -> None:
    """Bring `last.ckpt` of a callback up to the last step, unless it is there already, or nothing may be written."""
    if callback.save_last and not callback._should_skip_saving_checkpoint(trainer):
        callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))


def save_last_steps(trainer: Trainer) -> None:
    """`save_last_step` of all callbacks: epochs, time and early stopping end a run at steps that none could foresee."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            save_last_step(callback, trainer)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, to disk, then renames: a full disk or a killed run leaves the old file whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        try:
            with atomic_file(path, sole_writer=True) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise OSError(
                f"cannot write checkpoint {path}: {error}. Free some space and resume from the last one that is there"
            ) from error


def check_checkpoint(
    path: str | Path, module: LightningModule, to_train: bool = False, weights_only: bool = True
) -> None:
    """Refuse a checkpoint that is not one of this module.

    Args:
        path: Checkpoint file.
        module: What it is to be loaded into.
        to_train: Training is to go on from it.
        weights_only: As in `torch.load`.

    Raises:
        ValueError: The file is missing, damaged, or of another model; says what differs.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"--ckpt_path {path} does not exist")
    if path.is_dir():
        if not any((path / name).exists() for name in ("meta.pt", "checkpoint")):  # of Lightning, of DeepSpeed
            raise ValueError(f"--ckpt_path {path} is a folder, and no sharded checkpoint: name a file, or type last")
        return  # its strategy reads it
    checkpoint = _readable(path, weights_only)
    if to_train and "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds weights alone (save_weights_only), of which no training can be continued: take another one"
        )
    stored = checkpoint["state_dict"]
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


def _readable(path: Path, weights_only: bool) -> dict[str, Any]:
    wrong = f"{path} is not a readable checkpoint of `scalear fit`"
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{wrong}: it is damaged, or another kind of file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"Unsupported (?:global|class|operand)[^.]*?([\w.]+) was not|$", str(error))[1]
        raise ValueError(
            f"{wrong}: it holds more than tensors and plain values ({what or 'some object'}); if you trust its source, "
            "--weights_only false reads it"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{wrong}: {str(error).splitlines()[0]}") from error
    missing = [name for name in ("state_dict", "pytorch-lightning_version") if name not in checkpoint]
    if missing:
        raise ValueError(f"{wrong}: it has no {missing[0]}")
    return checkpoint


def load_weights(module: LightningModule, path: str | Path | None, weights_only: bool = True) -> None:
    """Give a generator's module the weights that the Trainer would predict with: averages, where the run kept them.

    Args:
        module: A `GeneratorModule`.
        path: Checkpoint; None reads the file of weights that the module names instead.
        weights_only: As in `torch.load`.

    Raises:
        ValueError: The checkpoint is sharded, not one of this module, or of another tokenizer; or nothing is named.
    """
    if path is None:
        if module.weights is None:
            raise ValueError("this needs trained weights: give --ckpt_path, or --model.weights for a converted model")
        return module.setup("weights")
    check_checkpoint(path, module, weights_only=weights_only)
    if Path(path).is_dir():
        raise ValueError(
            f"{path} is a sharded checkpoint: make one file of it first with "
            "`python -m lightning.pytorch.utilities.consolidate_checkpoint`"
        )
    module.weights = None  # the checkpoint holds all of them
    module.setup("weights")
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
