"""What a run's folder holds already survives: nothing in it is replaced unasked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from scalear.training.interruption import checkpoint_folder
from scalear.training.named_checkpoints import REQUEUED, checkpoints_of, identity
from scalear.yaml_files import parse_yaml

_REMEDY = "choose another --trainer.default_root_dir, or replace {} with --force"
_IDENTITY = "weights: "
# Results, and the stages that write them.
_RESULTS = {
    "samples.npz": ("test", "predict"),
    "grid.png": ("test", "predict"),
    "metrics.json": ("test",),
    "scales.png": ("test",),
}
# Settings that change speed, memory and training alone.
_WITHOUT_INFLUENCE = ("model.optimizer", "model.fast", "model.compile", "model.samples.batch_size", "data.batch_size")
_WITHOUT_INFLUENCE += ("data.eval_batch_size", "data.global_batch", "data.num_workers", "data.cache_dir", "data.seed")
_ON_NUMBERS_ALONE = ("model.report", "data")


def check_new_run(trainer: Trainer, ckpt_path: str | Path | None, exports: list[str | Path]) -> None:
    """Refuse to train over another run. Before anything is written.

    Args:
        trainer: Of `fit`.
        ckpt_path: The checkpoint that the run goes on from: its own folder is that of the same run.
        exports: Files that the end of training leaves.

    Raises:
        ValueError: The folder holds a run; says what can be done.
    """
    folder, root = checkpoint_folder(trainer), Path(trainer.default_root_dir)
    own = {path.resolve().parent for path in (folder / "_", root / "_")}
    if trainer.fast_dev_run or (ckpt_path is not None and Path(ckpt_path).resolve().parent in own):
        return
    there = checkpoints_of(root, [folder]) + [path for path in map(Path, exports) if path.exists()]
    if ckpt_path is None and SLURMEnvironment.detect() and any(path.match(REQUEUED) for path in there):
        return  # Lightning requeued the job, and resumes from there
    if there:
        raise ValueError(
            f"{root} holds a run already ({there[0]}): continue it with --ckpt_path last, {_REMEDY.format('it')}"
        )


def check_results(stage: str, folder: str | Path, config: dict[str, Any], weights: str | Path | None) -> None:
    """Refuse to replace results that other weights or other settings gave.

    Args:
        stage: `test` or `predict`.
        folder: Of the run.
        config: Resolved, of this command.
        weights: File that holds the weights.

    Raises:
        ValueError: There are such results; names what differs.
    """
    for name, stages in _RESULTS.items():
        path = Path(folder, name)
        if stage not in stages or not path.exists():
            continue
        records = [record for record in (Path(folder, f"{other}.yaml") for other in stages) if record.exists()]
        ignored = _WITHOUT_INFLUENCE + (() if name == "metrics.json" else _ON_NUMBERS_ALONE)
        differing = [different for record in records for different in _differences(record, config, weights, ignored)]
        if differing or not records:
            why = f"of other settings ({'; '.join(differing[:3])})" if differing else "whose settings are not recorded"
            raise ValueError(f"{path} is there, {why}: {_REMEDY.format('it')}")


def record_line(weights: str | Path | None) -> str:
    """What the record of a stage says of its weights: a comment in its YAML."""
    return f"{_IDENTITY}{identity(weights)}"


def _differences(
    record: Path, config: dict[str, Any], weights: str | Path | None, ignored: tuple[str, ...]
) -> Iterator[str]:
    text = record.read_text()
    line = next((line[2:] for line in text.splitlines() if line.startswith(f"# {_IDENTITY}")), None)
    if line != record_line(weights):
        yield f"{(line or 'unknown weights').removeprefix(_IDENTITY)} there, {identity(weights)} here"
    there, here = _settings(parse_yaml(text)), _settings(config)
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name) and not any(f"{name}.".startswith(f"{part}.") for part in ignored):
            yield f"{name} {there.get(name)} there, {here.get(name)} here"


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What results follow from, by dotted names."""
    parts = {name: config.get(name) for name in ("model", "data")}
    return dict(_flat(parts)) | {"trainer.precision": str(config.get("trainer", {}).get("precision"))}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, entry in value.items():
        yield from _flat(entry, name if key == "init_args" else f"{name}.{key}".lstrip("."))
