"""What a run's folder holds already survives: nothing in it is replaced unasked."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_info

from scalear.training.checkpoints import checkpoint_folders, continues
from scalear.training.generator.sample_store import Origin, sample_origins
from scalear.training.named_checkpoints import REQUEUED, checkpoints_of, identity
from scalear.yaml_files import parse_yaml

_REMEDY = "choose another {}, or replace it with --force"
_IDENTITY = "weights: "
# Results of `test`, beside its record.
_MEASURED = ("metrics.json", "scales.png")
_OF_SPEED = ("model.fast", "model.compile", "model.samples.batch_size", "model.samples.part")
_OF_SPEED += ("data.eval_batch_size", "data.num_workers", "data.cache_dir")
_OF_TRAINING = ("model.optimizer", "data.batch_size", "data.global_batch", "data.seed")
_WITHOUT_INFLUENCE = (*_OF_SPEED, *_OF_TRAINING)
_ON_NUMBERS_ALONE = ("model.report",)


def check_new_run(trainer: Trainer, ckpt_path: str | Path | None, exports: list[str | Path]) -> None:
    """Refuse to train over another run. Before anything is written.

    Args:
        trainer: Of `fit`.
        ckpt_path: The checkpoint that the run goes on from: its own folder is that of the same run.
        exports: Files that the end of training leaves.

    Raises:
        ValueError: The folder holds a run; says what can be done.
    """
    root = Path(trainer.default_root_dir)
    if trainer.fast_dev_run or continues(trainer, ckpt_path):
        return
    there = checkpoints_of(root, checkpoint_folders(trainer)) + [path for path in map(Path, exports) if path.exists()]
    if ckpt_path is None and SLURMEnvironment.detect() and any(path.match(REQUEUED) for path in there):
        return  # Lightning requeued the job, and resumes from there
    if there:
        ours = there[0].is_relative_to(root)
        where, other = (root, "--trainer.default_root_dir") if ours else (there[0].parent, "dirpath of the callback")
        raise ValueError(
            f"{where} holds a run already ({there[0]}): continue it with --ckpt_path last, {_REMEDY.format(other)}"
        )


def remove_run(trainer: Trainer, exports: list[str]) -> None:
    """Remove what would be taken for that of the new run until it has its own: checkpoints, and TensorBoard's events.

    Samples and numbers stay: they say which weights they are of.

    Args:
        trainer: Of `fit`.
        exports: Names of files beside, which the new run may never replace.
    """
    root = Path(trainer.default_root_dir)
    checkpoints = checkpoints_of(root, checkpoint_folders(trainer))
    for path in checkpoints:
        trainer.strategy.remove_checkpoint(path)
    boards = [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    events = [path for board in boards for path in (*board.glob("events.out.tfevents.*"), board / "hparams.yaml")]
    for path in (*events, *(root / name for name in exports)):
        path.unlink(missing_ok=True)
    if checkpoints:
        rank_zero_info(f"--force: removed {len(checkpoints)} checkpoint(s) of the run that was in {root}")


def check_results(stage: str, folder: str | Path, origin: Origin) -> None:
    """Refuse to replace results that other weights or other settings gave.

    Args:
        stage: `test` or `predict`.
        folder: Of the run.
        origin: What the numbers of this command follow from, by `result_origin`.

    Raises:
        ValueError: There are such results; names what differs.
    """
    here = sample_origin(origin)
    for path, there in sample_origins(folder).items():
        refuse_others(path, there, here)
    for path in (Path(folder, name) for name in _MEASURED):
        if stage == "test" and path.exists():
            record = Path(folder, "test.yaml")
            refuse_others(path, _recorded(record) if record.exists() else None, origin)


def result_origin(config: dict[str, Any], weights: str | Path | None) -> Origin:
    """What the numbers of a stage follow from.

    Args:
        config: Resolved.
        weights: File that holds the weights.
    """
    return _without(_origin(config, identity(weights)), _WITHOUT_INFLUENCE)


def sample_origin(origin: Origin) -> Origin:
    """What samples follow from.

    Args:
        origin: What their numbers follow from, by `result_origin`.
    """
    origin = _without(origin, _ON_NUMBERS_ALONE)
    labels = origin.get("model.samples.label_file")
    if labels is not None and Path(labels).is_file():
        origin["labels"] = hashlib.sha256(Path(labels).read_bytes()).hexdigest()
    return origin


def by_dotted_names(config: dict[str, Any]) -> dict[str, Any]:
    """All settings of a config by their names on the command line, as in `model.optimizer.lr`."""
    return dict(_flat(config))


def without_speed(settings: Origin) -> Origin:
    """Settings by dotted names, but for those that change speed and memory alone."""
    return _without(settings, _OF_SPEED)


def record_line(weights: str | Path | None) -> str:
    """What the record of a stage says of its weights: a comment in its YAML."""
    return f"{_IDENTITY}{identity(weights)}"


def refuse_others(path: Path, there: Origin | None, here: Origin, folder: str = "trainer.default_root_dir") -> None:
    """Refuse to go on with what follows from something else.

    Args:
        path: Of the results.
        there: What they follow from; None if that is not recorded.
        here: What those of this command do.
        folder: The option that says where they lie.

    Raises:
        ValueError: The two differ; says in what.
    """
    if there == here:
        return
    why = "whose settings are not recorded"
    if there is not None:
        differing = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
        values = [f"{name} {there.get(name)} there, {here.get(name)} here" for name in differing[:3]]
        why = f"of other settings ({'; '.join(values)})"
    raise ValueError(f"{path} is there, {why}: {_REMEDY.format(f'--{folder}')}")


def _recorded(record: Path) -> Origin:
    text = record.read_text()
    prefix = f"# {_IDENTITY}"
    line = next((line for line in text.splitlines() if line.startswith(prefix)), "unknown")
    return _without(_origin(parse_yaml(text), line.removeprefix(prefix)), _WITHOUT_INFLUENCE)


def _origin(config: dict[str, Any], weights: str) -> Origin:
    """What results follow from, by dotted names."""
    settings = by_dotted_names({name: config.get(name) for name in ("model", "data")})
    if any(name.startswith("model.samples.") for name in settings):  # a generator, which is not fed from the dataset
        settings = _without(settings, ("data",))
    settings |= {"trainer.precision": str(config.get("trainer", {}).get("precision")), "weights": weights}
    return {name: value for name, value in settings.items() if value is not None}


def _without(origin: Origin, names: tuple[str, ...]) -> Origin:
    return {
        name: value for name, value in origin.items() if not any(f"{name}.".startswith(f"{part}.") for part in names)
    }


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, entry in value.items():
        yield from _flat(entry, name if key == "init_args" else f"{name}.{key}".lstrip("."))
