"""How the rows of a study are run: the commands of each, in a folder of its own, and the result that it leaves."""

import hashlib
import json
import pydoc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scalear.__main__ import main
from scalear.commands.run import PartsOnly
from scalear.commands.stages import Stages
from scalear.data.index import INDEX_NAME, DatasetIndex
from scalear.hardware.machine import best_device, describe
from scalear.study.curves import training_record
from scalear.study.plan import (
    GeneratorRow,
    ReconstructionRow,
    Row,
    SamplingRow,
    Study,
    TokenizerRow,
    TrainedRow,
    settings_of_tokenizer,
)
from scalear.study.results import Identity, Result, result_path
from scalear.training.tokenizer.export import EXPORT_NAME
from scalear.training.tokenizer.scale_picture import PICTURE_NAME, ScalePicture
from scalear.yaml_files import read_yaml, to_yaml

_LAST = "checkpoints/last.ckpt"
_CHECKPOINT_STEPS = 200  # so much is lost, at most, when a session is killed
# Callbacks of the laptop's configs that cost time and change nothing.
_LEFT_OUT = {"SampleGrid", "BestCheckpoint"}
# Settings that say where something is, and how fast it goes.
_NOT_OF_NUMBERS = {"data_dir", "latents_dir", "cache_dir", "weights", "num_workers", "fast", "compile"}
_OF_TRAINER = ("max_steps", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
_BATCHES = (1, 100)  # of images, that sampling is timed with
_SHEET_ROWS = 4


class StudyRuns:
    """Runs and results of a study.

    Args:
        study: Its rows.
        runs: Folder of the runs.
        results: Folder of the results.
    """

    def __init__(self, study: Study, runs: str, results: str) -> None:
        self.study, self.runs, self.results = study, Path(runs), Path(results)
        self._data = _data_identity(study)
        self._configs: dict[str, dict[str, Any]] = {}
        self._there: set[Path] = set()  # runs that are complete

    def is_done(self, row: Row, seed: int) -> bool:
        """Whether there is a result, of the row as it is now."""
        result = Result.read(result_path(self.results, row, seed))
        return result is not None and result.identity == self.identity(row, seed)

    def identity(self, row: Row, seed: int) -> Identity:
        """What a result of this row follows from now."""
        follows = {"seed": seed, **self._follows(row)}
        return Identity(hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()[:16], self._data)

    def complete(self, row: Row, seed: int) -> None:
        """Do what of a row is not done yet, and of those that it needs; write the result.

        Raises:
            RuntimeError: A command failed; its message stands above.
            KeyboardInterrupt: It was stopped.
        """
        folder = self.folder(row, seed)
        if folder in self._there:
            return
        for needed in row.needs:
            self.complete(needed, needed.seeds[0])
        if seed != row.seeds[0] and not self.is_done(row, row.seeds[0]):
            self.complete(row, row.seeds[0])
        print(f"\n{row.name}, seed {seed}, in {folder}", flush=True)
        identity = self.identity(row, seed)
        Stages(folder, "row", {"method": identity.method}).carry_out(self._stages(row, seed, folder))
        path = result_path(self.results, row, seed)
        if (old := Result.read(path)) is None or old.identity != identity:
            self._result(row, identity, folder).write(path)
            sheet = folder / (PICTURE_NAME if isinstance(row, ReconstructionRow) else "grid.png")
            if seed == row.seeds[0] and sheet.is_file():
                shutil.copyfile(sheet, path.with_suffix(".png"))
        self._there.add(folder)

    def folder(self, row: Row, seed: int) -> Path:
        """Of a run: another one for another config, so that nothing is replaced."""
        return self.runs / row.name / f"{seed}-{self.identity(row, seed).config}"

    def arguments(self, row: TrainedRow, seed: int, folder: Path) -> list[str]:
        """Config of a row as commands take it."""
        settings = {
            **self._settings(row),
            **dict.fromkeys(("seed_everything", "model.seed", "data.seed"), seed),
            "trainer.default_root_dir": str(folder),
            "trainer.val_check_interval": max(1, row.steps // 4),
        }
        if isinstance(row, GeneratorRow):
            tokenizer = self.folder(row.tokenizer, row.tokenizer.seeds[0])
            settings |= {"model.tokenizer.weights": str(tokenizer / EXPORT_NAME), "model.samples.seed": seed}
            if row.reads_latents:
                settings["data.latents_dir"] = str(tokenizer / "latents")
        return [*_files(row), *typed(settings)]

    def _settings(self, row: TrainedRow) -> dict[str, Any]:
        """What is typed over the config, but for seeds and places."""
        settings: dict[str, Any] = {"data.data_dir": self.study.data}
        if isinstance(row, GeneratorRow):
            settings |= {
                "model.report.extractor.weights": self.study.extractor,
                **dict(settings_of_tokenizer(row.tokenizer)),
            }
        else:
            settings["model.rfid.extractor.weights"] = self.study.extractor
        return settings | {
            "trainer.max_steps": row.steps,
            "trainer.callbacks": list(_callbacks(row.callbacks)),
            **row.settings,
        }

    def _follows(self, row: Row) -> dict[str, Any]:
        """What numbers of a row follow from, but for its seed and the data."""
        needed = {other.name: self.identity(other, other.seeds[0]).config for other in row.needs}
        if isinstance(row, SamplingRow):
            return {"needs": needed, "scales": row.scales, "samples": row.samples}
        if not isinstance(row, TrainedRow):
            return {"needs": needed}
        follows = {"needs": needed, "config": {name: value for name, value in self._config(row) if _decides(name)}}
        if isinstance(row, GeneratorRow):
            follows |= {"samples": row.group.samples, "trials": [row.group.trials, row.group.trial_samples]}
            follows |= {"search": self.study.search}
        return follows

    def _config(self, row: TrainedRow) -> Iterator[tuple[str, Any]]:
        """Of a row as it is resolved, by dotted names."""
        if row.name not in self._configs:
            settings = self._settings(row)
            parts = _ConfigOnly([*_files(row), *typed(settings), "--seed_everything=false"])
            parts._dump_config()
            of_trainer = {name: parts.config.trainer[name] for name in _OF_TRAINER}
            of_trainer["callbacks"] = settings["trainer.callbacks"]
            self._configs[row.name] = {
                **{name: parts.config_dump[name] for name in ("model", "data")},
                "trainer": of_trainer,
            }
        return _flat(self._configs[row.name])

    def _stages(self, row: Row, seed: int, folder: Path) -> dict[str, Callable[[], None]]:
        """The commands of a row, by name, in their order."""
        last = f"--ckpt_path={folder / _LAST}"
        if isinstance(row, TrainedRow):
            args = self.arguments(row, seed, folder)
            stages = {"train": lambda: _train(folder, args)}
            if isinstance(row, TokenizerRow):
                stages["test"] = lambda: carry_out("test", *args, last)
                if not (folder / "latents" / INDEX_NAME).is_file():  # which is written before the stage is recorded
                    stages["cache latents"] = lambda: carry_out("predict", *args, last)
                return stages
            if row.group.trials and seed == row.seeds[0]:
                stages["search guidance"] = lambda: self._search(row, args, last, folder)
            stages["sample and measure"] = lambda: carry_out(
                "test", *args, *self._found(row, folder), last, *self._measured(row.group.samples)
            )
            if row.group.speed and seed == row.seeds[0]:
                stages["time"] = lambda: self._time(row, args, folder)
            return stages
        of = self.folder(row.of, row.of.seeds[0])
        args = [*self.arguments(row.of, row.of.seeds[0], of), f"--trainer.default_root_dir={folder}"]
        last = f"--ckpt_path={of / _LAST}"
        if isinstance(row, ReconstructionRow):
            others = {
                title: str(self.folder(other, other.seeds[0]) / EXPORT_NAME) for title, other in row.beside.items()
            }
            drawn = [{"class_path": ScalePicture.__name__, "init_args": {"others": others}}]
            return {"test": lambda: carry_out("test", *args, *typed({"trainer.callbacks": drawn}), last)}
        args += typed({"model.samples.scales": row.scales})
        if row.samples:
            return {
                "sample and measure": lambda: carry_out(
                    "test", *args, *self._found(row.of, of), last, *self._measured(row.samples)
                )
            }
        few = typed({"model.samples.num_per_class": _SHEET_ROWS})
        return {"sample": lambda: carry_out("predict", *args, *self._found(row.of, of), last, *few)}

    def _measured(self, samples: int) -> list[str]:
        """Against the images that no setting was chosen by."""
        count = {"model.samples.num_images": samples, "model.samples.grid_rows": _SHEET_ROWS}
        return typed({"model.report.reference_split": "test", **count})

    def _search(self, row: GeneratorRow, args: list[str], last: str, folder: Path) -> None:
        """Guidance by the validation split, which `model.report` names unless told otherwise."""
        sampling = pydoc.locate(dict(self._config(row))["model.sampling.class_path"])
        search = dict.fromkeys(sampling.searched) | self.study.search  # null is not searched
        budget = {
            "trials": row.group.trials,
            "num_samples": row.group.trial_samples,
            "output_dir": str(folder / "tune"),
        }
        carry_out("tune", *args, last, *typed(budget | {"search": search}))

    def _found(self, row: GeneratorRow, folder: Path) -> list[str]:
        """The overlay that the search of the first seed left, for all seeds."""
        if not row.group.trials:
            return []
        found = self.folder(row, row.seeds[0]) / "tune/winner.yaml"
        if not found.is_file():
            settings = Result.read(result_path(self.results, row, row.seeds[0])).settings
            found = folder / "winner.yaml"
            found.write_text(to_yaml({"model": {"init_args": dict(settings)}}))
        return ["-c", str(found)]

    def _time(self, row: GeneratorRow, args: list[str], folder: Path) -> None:
        for batch in _BATCHES:
            options = {"batch": batch, "json": str(folder / f"speed-{batch}.json"), "force": True}
            carry_out("benchmark", "sample", *args, *self._found(row, folder), *typed(options))

    def _result(self, row: Row, identity: Identity, folder: Path) -> Result:
        """Of what the stages left."""
        path = folder / "metrics.json"  # a sheet alone has none
        metrics = json.loads(path.read_text()) if path.is_file() else {}
        known: dict[str, Any] = {
            "numbers": {
                name.removeprefix("val/"): value
                for name, value in metrics.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            },
            "line": metrics.get("line", ""),
            "cautions": metrics.get("cautions", []),
            "precision": metrics.get("trainer_precision", ""),
            "measured_on": metrics.get("machine", ""),
        }
        if isinstance(row, TrainedRow):
            record = training_record(folder)
            known |= {"parameters": record.parameters, "steps": row.steps, "loss": record.loss}
            known["train_seconds"] = round(record.seconds_per_image * row.steps * row.batch_size, 1)
            known["machines"] = sorted(set((folder / _MACHINES).read_text().splitlines()))
        if isinstance(row, GeneratorRow) and row.group.trials:
            overlay = read_yaml(self._found(row, folder)[-1])
            known["settings"] = overlay["model"]["init_args"]
        if (folder / f"speed-{_BATCHES[0]}.json").is_file():
            known["speed"] = dict(_speed(folder))
        return Result(identity=identity, **known)


_MACHINES = "machines.txt"  # one line for each time that training went on


class _ConfigOnly(PartsOnly):
    """Read and resolved; nothing is built."""

    def instantiate_classes(self) -> None: ...


def carry_out(*args: str) -> None:
    """A command, as if it were typed.

    Raises:
        RuntimeError: It failed.
        KeyboardInterrupt: It was stopped.
    """
    print(f"scalear {' '.join(args)}", flush=True)
    try:
        code = main(list(args))
    except SystemExit as end:  # by a signal: what was trained is saved
        code = end.code
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"scalear {args[0]} ended with exit code {code}")


def typed(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]


def _train(folder: Path, args: Sequence[str]) -> None:
    with (folder / _MACHINES).open("a") as file:
        file.write(f"{describe(best_device())}\n")
    carry_out("fit", *args, "--ckpt_path=last")


def _files(row: TrainedRow) -> list[str]:
    return [arg for file in row.files for arg in ("-c", file)]


def _callbacks(given: Sequence[Any]) -> Iterator[Any]:
    """Those of a config that results follow from, and checkpoints often."""
    for callback in given:
        path = callback if isinstance(callback, str) else callback["class_path"]
        name = path.rpartition(".")[2]
        if name == "RunCheckpoint":
            yield {"class_path": path, "init_args": {"every_n_train_steps": _CHECKPOINT_STEPS}}
        elif name not in _LEFT_OUT:
            yield callback


def _speed(folder: Path) -> Iterator[tuple[str, float]]:
    for batch in _BATCHES:
        record = json.loads((folder / f"speed-{batch}.json").read_text())[0]
        yield f"seconds_per_image_{batch}", record["seconds_per_image"]
    yield "tflop_per_image", record["work_tflop"]


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
