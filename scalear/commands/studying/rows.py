"""How the rows of a study are run: the commands of each, in a folder of its own, and the result that it leaves."""

import json
import pydoc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from typing import Any

from scalear.commands.staged.stages import DivergedError, Stage, Stages
from scalear.commands.studying.configs import StudyConfigs, files_of, typed
from scalear.data.index import INDEX_NAME
from scalear.files import claimed, write_bytes
from scalear.hardware.machine import best_device, describe
from scalear.study.curves import training_record
from scalear.study.plan import (
    GeneratorRow,
    ReconstructionRow,
    Study,
    StudyRow,
    TokenizerRow,
    TrainedRow,
)
from scalear.study.results import Identity, StudyResult, result_path
from scalear.training.tokenizer.export import EXPORT_NAME
from scalear.training.tokenizer.scale_picture import PICTURE_NAME, ScalePicture
from scalear.tuning.space import usual_space
from scalear.yaml_files import read_yaml, to_yaml

_LAST = "checkpoints/last.ckpt"
_BATCHES = (1, 100)  # of images, that sampling is timed with
_SHEET_ROWS = 4


class AtWorkError(ValueError):
    """Another process does what is to be done."""


class StudyRuns:
    """Runs and results of a study.

    Args:
        study: Its rows.
        runs: Folder of the runs.
        results: Folder of the results.

    Attributes:
        configs: Of its rows.
    """

    def __init__(self, study: Study, runs: str, results: str) -> None:
        self.study, self.runs, self.results = study, Path(runs), Path(results)
        self.configs = StudyConfigs(study)
        self._there: set[Path] = set()  # runs that are complete

    def is_done(self, row: StudyRow, seed: int) -> bool:
        """Whether there is a result, of the row as it is now, with all that its group asks for."""
        result = StudyResult.read(result_path(self.results, row, seed))
        if result is None or result.identity != self.configs.identity(row, seed):
            return False
        return bool(result.speed) or result.has_failed or not _is_timed(row, seed)

    def complete(self, row: StudyRow, seed: int) -> None:
        """Do what of a row is not done yet, and of those that it needs; write the result.

        Raises:
            AtWorkError: Another process does it, or what it needs.
            CommandError: A command failed.
            KeyboardInterrupt: It was stopped.
        """
        folder = self.folder(row, seed)
        if folder in self._there:
            return
        for needed in row.needs:
            self.complete(needed, needed.seeds[0])
        if seed != row.seeds[0] and not self.is_done(row, row.seeds[0]):
            self.complete(row, row.seeds[0])
        with alone_in(folder):
            self._complete(row, seed, folder)
        self._there.add(folder)

    def _complete(self, row: StudyRow, seed: int, folder: Path) -> None:
        print(f"\n{row.name}, seed {seed}, in {folder}", flush=True)
        path, identity = result_path(self.results, row, seed), self.configs.identity(row, seed)
        try:
            Stages(folder, "row", {}).carry_out(self._stages(row, seed, folder))
        except DivergedError:
            if not isinstance(row, GeneratorRow):
                raise
            StudyResult(
                identity=identity, numbers={"fid": inf}, line="Training fails: numbers that are not finite."
            ).write(path)
            return
        if self.is_done(row, seed):
            return
        sheet = folder / (PICTURE_NAME if isinstance(row, ReconstructionRow) else "grid.png")
        if seed == row.seeds[0] and sheet.is_file():
            write_bytes(path.with_suffix(".png"), sheet.read_bytes())
        self._result(row, identity, folder).write(path)  # last: with it the row is done

    def folder(self, row: StudyRow, seed: int) -> Path:
        """Of a run: another one where it follows from something else, so that nothing is replaced."""
        return self.runs / row.name / f"{seed}-{self.configs.identity(row, seed).digest}"

    def arguments(self, row: TrainedRow, seed: int, folder: Path) -> list[str]:
        """Config of a row as commands take it."""
        settings = {
            **self.configs.settings(row),
            **dict.fromkeys(("seed_everything", "model.seed", "data.seed"), seed),
            "trainer.default_root_dir": str(folder),
            "trainer.val_check_interval": max(1, row.steps // 4),
        }
        if isinstance(row, GeneratorRow):
            tokenizer = self.folder(row.tokenizer, row.tokenizer.seeds[0])
            settings |= {"model.tokenizer.weights": str(tokenizer / EXPORT_NAME), "model.samples.seed": seed}
            if row.reads_latents:
                settings["data.latents_dir"] = str(tokenizer / "latents")
        return [*files_of(row), *typed(settings)]

    def _stages(self, row: StudyRow, seed: int, folder: Path) -> dict[str, Stage]:
        """The commands of a row, by name, in their order."""
        last = f"--ckpt_path={folder / _LAST}"
        if isinstance(row, TrainedRow):
            args = self.arguments(row, seed, folder)
            stages: dict[str, Stage] = {"train": lambda: _train(folder, args)}
            if isinstance(row, TokenizerRow):
                stages["test"] = lambda: ["test", *args, last]
                if not (folder / "latents" / INDEX_NAME).is_file():  # which is written before the stage is recorded
                    stages["cache latents"] = lambda: ["predict", *args, last]
                return stages
            if row.group.trials and seed == row.seeds[0]:
                stages["search guidance"] = lambda: self._search(row, args, last, folder)
            stages["sample and measure"] = lambda: [
                *("test", *args, *self._found(row, folder), last, *self._measured(row.group.samples))
            ]
            if _is_timed(row, seed):
                for batch in _BATCHES:
                    options = {"batch": batch, "json": str(_speed_path(folder, batch)), "force": True}
                    stages[f"time a batch of {batch}"] = lambda options=options: [
                        *("benchmark", "sample", *args, *self._found(row, folder), *typed(options))
                    ]
            return stages
        of = self.folder(row.of, row.of.seeds[0])
        args = [*self.arguments(row.of, row.of.seeds[0], of), f"--trainer.default_root_dir={folder}"]
        last = f"--ckpt_path={of / _LAST}"
        if isinstance(row, ReconstructionRow):
            others = {
                title: str(self.folder(other, other.seeds[0]) / EXPORT_NAME) for title, other in row.beside.items()
            }
            drawn = [{"class_path": ScalePicture.__name__, "init_args": {"others": others}}]
            return {"test": lambda: ["test", *args, *typed({"trainer.callbacks": drawn}), last]}
        args += [*self._found(row.of, of), last, *typed({"model.samples.scales": row.scales})]
        if row.samples:
            return {"sample and measure": lambda: ["test", *args, *self._measured(row.samples)]}
        return {"sample": lambda: ["predict", *args, *typed({"model.samples.num_per_class": _SHEET_ROWS})]}

    def _measured(self, samples: int) -> list[str]:
        """Against the images that no setting was chosen by."""
        count = {"model.samples.num_images": samples, "model.samples.grid_rows": _SHEET_ROWS}
        return typed({"model.report.reference_split": "test", **count})

    def _search(self, row: GeneratorRow, args: list[str], last: str, folder: Path) -> list[str]:
        """Guidance by the validation split, which `model.report` names unless told otherwise."""
        sampling = pydoc.locate(self.configs.resolved(row)["model.sampling.class_path"])
        search = dict.fromkeys(usual_space(sampling)) | self.study.search  # null is not searched
        budget = {
            "trials": row.group.trials,
            "num_samples": row.group.trial_samples,
            "output_dir": str(folder / "tune"),
        }
        return ["tune", *args, last, *typed(budget | {"search": search})]

    def _found(self, row: GeneratorRow, folder: Path) -> list[str]:
        """The overlay that the search of the first seed left, for all seeds."""
        if not row.group.trials:
            return []
        found = self.folder(row, row.seeds[0]) / "tune/winner.yaml"
        if not found.is_file():
            settings = StudyResult.read(result_path(self.results, row, row.seeds[0])).settings
            found = folder / "winner.yaml"
            write_bytes(found, to_yaml({"model": {"init_args": dict(settings)}}).encode())
        return ["-c", str(found)]

    def _result(self, row: StudyRow, identity: Identity, folder: Path) -> StudyResult:
        """Of what the stages left."""
        path = folder / "metrics.json"  # a sheet alone has none
        metrics = json.loads(path.read_text()) if path.is_file() else {}
        known: dict[str, Any] = {
            "numbers": {
                name: value
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
        if _speed_path(folder, _BATCHES[-1]).is_file():
            known["speed"] = dict(_speed(folder))
        return StudyResult(identity=identity, **known)


_MACHINES = "machines.txt"  # one line for each time that training went on


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process makes this folder, which is to be new: the lock lies beside it.

    Raises:
        AtWorkError: Another process does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(folder.with_name(f".{folder.name}.lock"), f"is at work in {folder}"))
        except ValueError as error:
            raise AtWorkError(str(error)) from error
        yield


def _train(folder: Path, args: list[str]) -> list[str]:
    with (folder / _MACHINES).open("a") as file:
        file.write(f"{describe(best_device())}\n")
    return ["fit", *args, "--ckpt_path=last"]


def _is_timed(row: StudyRow, seed: int) -> bool:
    return isinstance(row, GeneratorRow) and row.group.speed and seed == row.seeds[0]


def _speed_path(folder: Path, batch: int) -> Path:
    return folder / f"speed-{batch}.json"


def _speed(folder: Path) -> Iterator[tuple[str, float]]:
    for batch in _BATCHES:
        record = json.loads(_speed_path(folder, batch).read_text())[0]
        yield f"seconds_per_image_{batch}", record["seconds_per_image"]
    yield "tflop_per_image", record["work_tflop"]
