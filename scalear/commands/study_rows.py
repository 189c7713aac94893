"""How the rows of a study are run: the commands of each, in a folder of its own, and the result that it leaves."""

import json
import pydoc
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scalear.__main__ import main
from scalear.commands.stages import Stages
from scalear.commands.study_configs import StudyConfigs, files_of, typed
from scalear.data.index import INDEX_NAME
from scalear.files import claimed
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
from scalear.yaml_files import read_yaml, to_yaml

_LAST = "checkpoints/last.ckpt"
_BATCHES = (1, 100)  # of images, that sampling is timed with
_SHEET_ROWS = 4


class AtWorkError(Exception):
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
        """Whether there is a result, of the row as it is now."""
        result = StudyResult.read(result_path(self.results, row, seed))
        return result is not None and result.identity == self.configs.identity(row, seed)

    def complete(self, row: StudyRow, seed: int) -> None:
        """Do what of a row is not done yet, and of those that it needs; write the result.

        Raises:
            AtWorkError: Another process does it, or what it needs.
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
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(claimed(lock_of(folder), f"is at work in {folder}"))
            except ValueError as error:
                raise AtWorkError(str(error)) from error
            self._complete(row, seed, folder)
        self._there.add(folder)

    def _complete(self, row: StudyRow, seed: int, folder: Path) -> None:
        print(f"\n{row.name}, seed {seed}, in {folder}", flush=True)
        Stages(folder, "row", {}).carry_out(self._stages(row, seed, folder))
        path, identity = result_path(self.results, row, seed), self.configs.identity(row, seed)
        if (old := StudyResult.read(path)) is None or old.identity != identity:
            self._result(row, identity, folder).write(path)
            sheet = folder / (PICTURE_NAME if isinstance(row, ReconstructionRow) else "grid.png")
            if seed == row.seeds[0] and sheet.is_file():
                shutil.copyfile(sheet, path.with_suffix(".png"))

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

    def _stages(self, row: StudyRow, seed: int, folder: Path) -> dict[str, Callable[[], None]]:
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
        sampling = pydoc.locate(dict(self.configs.resolved(row))["model.sampling.class_path"])
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
            settings = StudyResult.read(result_path(self.results, row, row.seeds[0])).settings
            found = folder / "winner.yaml"
            found.write_text(to_yaml({"model": {"init_args": dict(settings)}}))
        return ["-c", str(found)]

    def _time(self, row: GeneratorRow, args: list[str], folder: Path) -> None:
        for batch in _BATCHES:
            options = {"batch": batch, "json": str(folder / f"speed-{batch}.json"), "force": True}
            carry_out("benchmark", "sample", *args, *self._found(row, folder), *typed(options))

    def _result(self, row: StudyRow, identity: Identity, folder: Path) -> StudyResult:
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
        return StudyResult(identity=identity, **known)


_MACHINES = "machines.txt"  # one line for each time that training went on


def lock_of(folder: Path) -> Path:
    """Beside a run: the folder itself is to be new."""
    return folder.with_name(f".{folder.name}.lock")


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


def _train(folder: Path, args: Sequence[str]) -> None:
    with (folder / _MACHINES).open("a") as file:
        file.write(f"{describe(best_device())}\n")
    carry_out("fit", *args, "--ckpt_path=last")


def _speed(folder: Path) -> Iterator[tuple[str, float]]:
    for batch in _BATCHES:
        record = json.loads((folder / f"speed-{batch}.json").read_text())[0]
        yield f"seconds_per_image_{batch}", record["seconds_per_image"]
    yield "tflop_per_image", record["work_tflop"]
