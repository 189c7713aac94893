"""What the rows of a study are made of, resolved as a command resolves it, and the identity that follows from it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scalear.commands.run import PartsOnly
from scalear.data.index import DatasetIndex
from scalear.study.plan import GeneratorRow, SamplingRow, Study, StudyRow, TrainedRow, settings_of_tokenizer
from scalear.study.results import Identity

_CHECKPOINT_STEPS = 200  # so much is lost, at most, when a session is killed
# Callbacks of the laptop's configs that cost time and change nothing.
_LEFT_OUT = {"SampleGrid", "BestCheckpoint"}
# Settings that say where something is, and how fast it goes.
_NOT_OF_NUMBERS = {"data_dir", "latents_dir", "cache_dir", "weights", "num_workers", "fast", "compile"}
_OF_TRAINER = ("max_steps", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")


class StudyConfigs:
    """Configs and identities of rows.

    Args:
        study: The rows.

    Raises:
        ValueError: There is no dataset.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._data = _data_identity(study)
        self._resolved: dict[str, dict[str, Any]] = {}  # takes half a second each

    def identity(self, row: StudyRow, seed: int) -> Identity:
        """What a result of this row follows from now."""
        follows = {"seed": seed, **self._follows(row)}
        return Identity(hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()[:16], self._data)

    def settings(self, row: TrainedRow) -> dict[str, Any]:
        """What is typed over the config, but for seeds and places."""
        settings: dict[str, Any] = {"data.data_dir": self._study.data}
        if isinstance(row, GeneratorRow):
            settings["model.report.extractor.weights"] = self._study.extractor
            settings |= settings_of_tokenizer(row.tokenizer)
        else:
            settings["model.rfid.extractor.weights"] = self._study.extractor
        return settings | {
            "trainer.max_steps": row.steps,
            "trainer.callbacks": list(_callbacks(row.callbacks)),
            **row.settings,
        }

    def resolved(self, row: TrainedRow) -> Iterator[tuple[str, Any]]:
        """Of a row as it is resolved, by dotted names."""
        if row.name not in self._resolved:
            settings = self.settings(row)
            parts = _ConfigOnly([*files_of(row), *typed(settings), "--seed_everything=false"])
            parts._dump_config()
            of_trainer = {name: parts.config.trainer[name] for name in _OF_TRAINER}
            of_trainer["callbacks"] = settings["trainer.callbacks"]
            self._resolved[row.name] = {
                **{name: parts.config_dump[name] for name in ("model", "data")},
                "trainer": of_trainer,
            }
        return _flat(self._resolved[row.name])

    def _follows(self, row: StudyRow) -> dict[str, Any]:
        """What numbers of a row follow from, but for its seed and the data."""
        needed = {other.name: self.identity(other, other.seeds[0]).config for other in row.needs}
        if isinstance(row, SamplingRow):
            return {"needs": needed, "scales": row.scales, "samples": row.samples}
        if not isinstance(row, TrainedRow):
            return {"needs": needed}
        follows = {"needs": needed, "config": {name: value for name, value in self.resolved(row) if _decides(name)}}
        if isinstance(row, GeneratorRow):
            follows |= {"samples": row.group.samples, "trials": [row.group.trials, row.group.trial_samples]}
            follows |= {"search": self._study.search}
        return follows


def files_of(row: TrainedRow) -> list[str]:
    """Config and overlays as options."""
    return [arg for file in row.files for arg in ("-c", file)]


def typed(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]


class _ConfigOnly(PartsOnly):
    """Read and resolved; nothing is built."""

    def instantiate_classes(self) -> None: ...


def _callbacks(given: Sequence[Any]) -> Iterator[Any]:
    """Those of a config that results follow from, and checkpoints often."""
    for callback in given:
        path = callback if isinstance(callback, str) else callback["class_path"]
        name = path.rpartition(".")[2]
        if name == "RunCheckpoint":
            yield {"class_path": path, "init_args": {"every_n_train_steps": _CHECKPOINT_STEPS}}
        elif name not in _LEFT_OUT:
            yield callback


def _decides(name: str) -> bool:
    """Whether numbers follow from a setting."""
    return name.rpartition(".")[2] not in _NOT_OF_NUMBERS


def _flat(value: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in value.items():
        inner = name if key == "init_args" else f"{name}.{key}".lstrip(".")
        if isinstance(entry, Mapping) and entry:
            yield from _flat(entry, inner)
        else:
            yield inner, entry


def _data_identity(study: Study) -> str:
    index = DatasetIndex.load(study.data)
    total = hashlib.sha256(Path(study.extractor).read_bytes())
    for split in sorted(index.splits):
        total.update(f"{split} {index.checksum(split)}".encode())
    return total.hexdigest()[:16]
