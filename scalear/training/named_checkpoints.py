"""Checkpoints by what they say of themselves: which is the last, which the best, and whether two are the same."""

import pickle
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

REQUEUED = "hpc_ckpt_*.ckpt"  # what Lightning saves before it requeues a job
_SAVED_AT = "saved_at"  # key in checkpoints


class RecordTime(Callback):
    """Writes down in every checkpoint when it was saved: copies of it keep that, and nothing else has the same."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_SAVED_AT] = time.time()


def named_checkpoint(
    name: str | None, trainer: Mapping[str, Any], command: str, weights_only: bool = True
) -> str | None:
    """The path that `--ckpt_path` means.

    Args:
        name: `last`: the newest whole checkpoint of the run, whatever saved it. `best`: that of the callback which
            monitors something. `hpc`: the newest that Lightning's requeueing saved. All else is a path already.
        trainer: Config of the run's Trainer.
        command: `fit` begins a new run where there is no last checkpoint, and cannot go on from weights alone.
        weights_only: As in `torch.load`.

    Returns:
        The path; None for a new run.

    Raises:
        ValueError: There is none, or none that is whole.
    """
    if name not in _NAMES:
        return name
    folders = _folders(trainer)
    paths = checkpoints_of(trainer["default_root_dir"], folders)
    whole = {path: found for path in paths if (found := metadata(path, weights_only))}
    if command == "fit":
        whole = {path: found for path, found in whole.items() if path.is_dir() or "optimizer_states" in found}
    broken = ", ".join(str(path) for path in paths if path not in whole)
    if name == "hpc":
        whole = {path: found for path, found in whole.items() if path.match(REQUEUED)}
    found = max(whole, key=lambda path: _age(path, whole[path]), default=None)
    if name == "best":
        found = found and _best(found, whole[found])
    if found is None and ((command, name) != ("fit", "last") or broken):
        what, remedy = _NAMES[name]
        places = " or ".join(map(str, folders))
        if broken:
            remedy = f"move away what is not whole, {broken}, or name a file"
        raise ValueError(f"--ckpt_path {name}: there is no {what} in {places}: {remedy}")
    without = f", without {broken}, not whole" if broken else ""
    rank_zero_info(f"--ckpt_path {name}: {found or 'there is no checkpoint yet, a new run begins'}{without}")
    return None if found is None else str(found)


_MONITOR = "train with a callback that keeps one (SampleScore, BestCheckpoint), or take last"
_NAMES = {
    "last": ("whole checkpoint", "train first, or name a file"),
    "best": ("checkpoint that was chosen by a monitored value", _MONITOR),
    "hpc": ("checkpoint of a requeued job", "take last"),
}


def _folders(trainer: Mapping[str, Any]) -> list[Path]:
    """Where a run keeps checkpoints: its own, and those of other callbacks."""
    root, callbacks = Path(trainer["default_root_dir"]), trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    arguments = [callback.get("init_args") or {} for callback in callbacks if not isinstance(callback, str)]
    others = (Path(given["dirpath"]) for given in arguments if given.get("dirpath"))
    return list(dict.fromkeys([root / "checkpoints", *others]))


def _best(newest: Path, found: dict[str, Any]) -> Path | None:
    """The best checkpoint that the newest one knows of; in its own folder, if the run was moved."""
    for state in found.get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):
            path = Path(state["best_model_path"])
            return next((place for place in (path, newest.with_name(path.name)) if place.exists()), None)
    return None


def checkpoints_of(root: str | Path, folders: Iterable[Path]) -> list[Path]:
    """All checkpoints of a run, whole or not: in its folders for them, and of Lightning's requeueing beside."""
    return [path for folder in folders for path in folder.glob("*.ckpt")] + list(Path(root).glob(REQUEUED))


def newest_step(folder: str | Path, prefix: str) -> tuple[Path, int] | None:
    """The newest whole checkpoint in a folder and its optimizer step; None where there is none.

    Args:
        folder: Of checkpoints.
        prefix: Begins the names of its weights, so that those of other models do not count.
    """
    found = {path: metadata(path) for path in Path(folder).glob("*.ckpt") if path.is_file()}
    whole = {path: m for path, m in found.items() if any(name.startswith(prefix) for name in m.get("state_dict", {}))}
    newest = max(whole, key=lambda path: _age(path, whole[path]), default=None)
    return None if newest is None else (newest, whole[newest]["global_step"])


def identity(path: str | Path | None) -> str:
    """What tells the weights in a file from others, without reading them all."""
    if path is None:
        return "none"
    found = metadata(Path(path))
    if _SAVED_AT in found:
        average = ", averaged" if "current_model_state" in found else ""  # see EMA
        return f"step {found['global_step']}, saved at {found[_SAVED_AT]}{average}"
    stat = Path(path).stat()
    return f"{Path(path).name}, {stat.st_size} bytes, of {stat.st_mtime}"


def metadata(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """What a checkpoint says of itself; nothing, if it is not whole."""
    try:
        # A sharded one keeps it in a file of its own.
        found = torch.load(path / "meta.pt" if path.is_dir() else path, "cpu", weights_only=weights_only, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) and "global_step" in found else {}


def _age(path: Path, found: dict[str, Any]) -> tuple[float, float]:
    when = path.stat().st_mtime
    return found.get(_SAVED_AT, when), when
