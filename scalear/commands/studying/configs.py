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
from scalear.training.run_folder import by_dotted_names, without_speed
from scalear.yaml_files import parse_yaml

_CHECKPOINT_STEPS = 200  # so much is lost, at most, when a session is killed
_CHECKPOINTS = "RunCheckpoint"
# Callbacks of the laptop's configs that cost time and change nothing.
_LEFT_OUT = {"SampleGrid", "BestCheckpoint"}
_PLACES = {"data_dir", "latents_dir", "weights"}
# The study types it over, as a part of the row's group.
_TYPED_OVER = {"model.samples.num_images"}
_OF_TRAINER = ("max_steps", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "precision")


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

    def resolved(self, row: TrainedRow) -> dict[str, Any]:
        """Of a row as it is resolved, by dotted names; without what is as it is by default.

        So an option that is new changes no row. One whose default changes is for `METHOD`.
        """
        if row.name not in self._resolved:
            settings = self.settings(row)
            parts = _ConfigOnly([*files_of(row), *typed(settings), "--seed_everything=false"])
            said = parse_yaml(parts.parser.dump(parts.config, skip_default=True, skip_none=False))
            of_trainer = {name: parts.config.trainer[name] for name in _OF_TRAINER}
            of_trainer["callbacks"] = [call for call in settings["trainer.callbacks"] if _kind(call) != _CHECKPOINTS]
            self._resolved[row.name] = by_dotted_names(
                {"model": said["model"], "data": said["data"], "trainer": of_trainer}
            )
        return self._resolved[row.name]

    def _follows(self, row: StudyRow) -> dict[str, Any]:
        """What numbers of a row follow from, but for its seed and the data."""
        needed = {other.name: self.identity(other, other.seeds[0]).config for other in row.needs}
        if isinstance(row, SamplingRow):
            return {"needs": needed, "scales": row.scales, "samples": row.samples}
        if not isinstance(row, TrainedRow):
            return {"needs": needed}
        settings = without_speed(self.resolved(row))
        decides = {
            name: value
            for name, value in settings.items()
            if name not in _TYPED_OVER and name.rpartition(".")[2] not in _PLACES
        }
        follows = {"needs": needed, "config": decides}
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
        if _kind(callback) == _CHECKPOINTS:
            yield {"class_path": _CHECKPOINTS, "init_args": {"every_n_train_steps": _CHECKPOINT_STEPS}}
        elif _kind(callback) not in _LEFT_OUT:
            yield callback


def _kind(callback: Any) -> str:
    """Name of its class."""
    return (callback if isinstance(callback, str) else callback["class_path"]).rpartition(".")[2]


def _data_identity(study: Study) -> str:
    index = DatasetIndex.load(study.data)
    total = hashlib.sha256(Path(study.extractor).read_bytes())
    for split in sorted(index.splits):
        total.update(f"{split} {index.checksum(split)}".encode())
    return total.hexdigest()[:16]
