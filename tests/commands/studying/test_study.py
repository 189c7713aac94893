"""`scalear study` on tiny rows: to the end, stopped and continued, not repeated, and done anew where they changed."""

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from cli_fixtures import CLASSIFIER, run, write_folders
from code_fixtures import flexvar_config, tokenizer_config

from scalear.commands import benchmark, study
from scalear.commands.benchmark import parse_setting
from scalear.commands.staged import stages
from scalear.commands.studying import rows
from scalear.evaluation.images import load_samples
from scalear.files import write_json
from scalear.study.cost import read_costs, write_costs
from scalear.study.plan import Study
from scalear.study.results import StudyResult
from scalear.tokenizers.objective import TokenizerLoss

LEVEL = {
    "model": {"init_args": {"transformer": {"positions": "scalear.models.positions.LevelPositions"}, "schedules": None}}
}
INIT = ("model", "init_args")
TABLES = {
    "Positions": {"rows": {"flexvar": [3.71, 230.2], "flexvar-level": [3.82, 229.4]}},
    "Steps": {"group": "samplings", "rows": {"steps-3": None, "sizes-x2": None, "tokenizers": None}, "orders": []},
    "Losses": {"curves": ["flexvar", "flexvar-level"]},
}
# What is done of these rows, in this order.
TOKENIZER = ["fit", "test", "predict"]
FIRST_SEED = ["fit", "tune", "test", "benchmark", "benchmark"]
COMMANDS = [
    *(*TOKENIZER, *FIRST_SEED, "fit", "test"),  # flexvar of both seeds
    *(*FIRST_SEED, "fit", "test"),  # flexvar-level
    *("test", "predict", "test"),  # samplings
]


@pytest.fixture(scope="module")
def split_images(tmp_path_factory) -> Path:
    """A dataset of train, val and test."""
    root = tmp_path_factory.mktemp("split")
    for split, per_class in (("train", 16), ("val", 8), ("test", 8)):
        write_folders(root / "folders" / split, per_class)
    shards = ("--image_size=32", "--image_channels=1", "--num_workers=0", f"--output_dir={root / 'images'}")
    assert run("data", "pack", "--source=ImageFolder", f"--source.root={root / 'folders'}", *shards) == 0
    return root / "images"


def write_study(root: Path, images: Path) -> list[str]:
    """Configs of three rows and what goes with them; the command that runs them all."""
    for name, make in (("vq", tokenizer_config), ("flexvar", flexvar_config)):
        config = make(root, images)
        config["trainer"] |= {"log_every_n_steps": 1, "precision": "32-true"}
        config["data"]["init_args"]["latents_dir"] = None if name == "vq" else "somewhere"
        _write_yaml(root / f"configs/{name}.yaml", config)
    _write_yaml(root / "configs/flexvar/level.yaml", LEVEL)
    content = {
        "configs": str(root / "configs"),
        "data": str(images),
        "extractor": CLASSIFIER,
        "search": {"model.guidance.weight": [1, 3]},
        "groups": {
            "tokenizers": {"images": 16, "seeds": [0]},
            "ablations": {"images": 24, "seeds": [0, 1], "samples": 6, "trials": 2, "trial_samples": 6, "speed": True},
        },
        "families": {"flexvar": "vq"},
        "tokenizers": {"vq": {}},
        "samplings": {
            "steps": {"of": "ablations/flexvar", "samples": 6, "scales": {3: "1,4,8"}},
            "sizes": {"of": "ablations/flexvar", "scales": {"x2": "1,2,4,8,16"}},
            "tokenizers": {"of": "tokenizers/vq", "beside": {"the same": "vq"}},
        },
    }
    _write_yaml(root / "study.yaml", content)
    _write_yaml(root / "results/tables.yaml", TABLES)
    places = {"config": "study.yaml", "tables": "results/tables.yaml", "results_dir": "results", "runs_dir": "runs"}
    return ["study", *(f"--{name}={root / place}" for name, place in places.items()), f"--page={root / 'study.md'}"]


def _write_yaml(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """Names of the commands of rows, as they are carried out; benchmarks are read and not timed."""
    names: list[str] = []
    carry_out = stages.main

    def main(args: list[str]) -> int:
        names.append(args[0])
        if args[0] != "benchmark":
            return carry_out(args)
        options = parse_setting(args[1:]).options
        assert options.job == "sample" and options.batch in (1, 100)
        write_json(options.json, [{"seconds_per_image": 0.5 / options.batch, "work_tflop": 0.002}])
        return 0

    monkeypatch.setattr(stages, "main", main)
    return names


def test_rows_go_on_where_they_were_stopped_and_are_done_once(split_images, tmp_path, done, capsys, monkeypatch):
    args = write_study(tmp_path, split_images)
    for place in (5, 16):
        stop_after(place - len(done), monkeypatch)
        assert run(*args) == 130
    assert run(*args) == 0 and done == COMMANDS
    results = tmp_path / "results"
    files = {str(path.relative_to(results)): path.read_bytes() for path in results.glob("*/*.json")}
    assert files.keys() == {
        "tokenizers/vq-0.json",
        *(f"ablations/{name}-{seed}.json" for name in ("flexvar", "flexvar-level") for seed in (0, 1)),
        *(f"samplings/{name}-0.json" for name in ("steps-3", "sizes-x2", "tokenizers")),
    }
    assert run(*args) == 0 and done == COMMANDS
    assert "8 of 8 results are there" in capsys.readouterr().out
    check_what_a_result_lacks_is_added(tmp_path, args, done, monkeypatch)

    first, second = (StudyResult.read(results / f"ablations/flexvar-{seed}.json") for seed in (0, 1))
    assert {"fid", "kid", "is", "precision", "recall", "accuracy"} <= first.numbers.keys()
    assert "images test" in first.line and first.steps == 3 and len(first.loss) == 3 and first.train_seconds > 0
    assert first.speed == {"seconds_per_image_1": 0.5, "seconds_per_image_100": 0.005, "tflop_per_image": 0.002}
    assert first.settings == second.settings and 1 <= first.settings["guidance"]["weight"] <= 3
    assert first.parameters > 10_000 and first.parameters == second.parameters
    assert first.numbers["fid"] != second.numbers["fid"] and first.precision == "32-true" and len(first.machines) == 1
    (folder,) = (tmp_path / "runs/ablations/flexvar").glob("1-*")
    tested = yaml.safe_load((folder / "test.yaml").read_text())["model"]["init_args"]
    assert tested["guidance"]["weight"] == first.settings["guidance"]["weight"] and tested["samples"]["seed"] == 1
    (folder,) = (tmp_path / "runs/samplings/sizes-x2").glob("0-*")
    assert load_samples(folder / "samples.npz")[0].shape == (12, 64, 64, 1)
    assert {path.name for path in results.glob("samplings/*.png")} == {
        f"{n}-0.png" for n in ("steps-3", "sizes-x2", "tokenizers")
    }

    # A fresh clone has results and no runs: a row whose config changed is done anew, and nothing else.
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    _write_yaml(tmp_path / "configs/flexvar/level.yaml", LEVEL | {"trainer": {"gradient_clip_val": 0.5}})
    assert run(*args, "--report=true") == 0
    assert "**6 of 8 results are there**" in (tmp_path / "study.md").read_text()  # others are out of date
    done.clear()
    assert run(*args, "--name=ablations/flexvar-level") == 0
    assert done == [*TOKENIZER, *FIRST_SEED, "fit", "test"]
    for name, content in files.items():
        assert ((results / name).read_bytes() == content) == ("level" not in name)

    assert run(*args, "--report=true") == 0
    page = (tmp_path / "study.md").read_text()
    assert "**8 of 8 results are there**" in page and "![losses of training](results/losses-" in page
    pictures = [part.partition(")")[0] for part in page.split("](")[1:] if ".png)" in part]
    assert len(pictures) == 6 and all((tmp_path / picture).is_file() for picture in pictures)


def check_what_a_result_lacks_is_added(root: Path, args: list[str], done: list[str], monkeypatch) -> None:
    # Its group did not ask for speed when the run ended.
    result, count = root / "results/ablations/flexvar-0.json", len(done)
    content = result.read_bytes()
    (record,) = (root / "runs/ablations/flexvar").glob("0-*/row.json")
    seconds = json.loads(record.read_text())["seconds"]
    untimed = {name: spent for name, spent in seconds.items() if not name.startswith("time ")}
    write_json(record, {"settings": {}, "seconds": untimed})
    write_json(result, json.loads(content) | {"speed": {}})
    assert run(*args) == 0 and done[count:] == ["benchmark", "benchmark"] and result.read_bytes() == content
    # Killed where the result is written, its sheet is there.
    result, sheet = (root / f"results/samplings/steps-3-0.{suffix}" for suffix in ("json", "png"))
    content = result.read_bytes()
    result.unlink()
    sheet.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(StudyResult, "write", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            run(*args)
    assert sheet.is_file() and not result.exists()
    assert run(*args) == 0 and result.read_bytes() == content


def stop_after(count: int, monkeypatch) -> None:
    """Press Ctrl-C in the place of a command that comes after so many."""
    carry_out = stages.main
    left = [count]

    def main(args: list[str]) -> int:
        if not left[0]:
            monkeypatch.setattr(stages, "main", carry_out)
            return 130
        left[0] -= 1
        return carry_out(args)

    monkeypatch.setattr(stages, "main", main)


def test_a_row_that_fails_does_not_keep_others(split_images, tmp_path, capsys, monkeypatch):
    args = write_study(tmp_path, split_images)
    asked = []
    monkeypatch.setattr(stages, "main", lambda args: asked.append(args[0]) or 2)
    assert run(*args, "--name=ablations") == 2
    assert asked == ["fit"] * 4 and not list((tmp_path / "results").glob("*/*.json"))
    error = capsys.readouterr().err
    assert "4 rows failed, whose messages stand above: ablations/flexvar (seed 0), ablations/flexvar (seed 1)" in error

    def faulty(args: list[str]) -> int:
        raise KeyError(args[0])

    monkeypatch.setattr(stages, "main", faulty)
    assert run(*args, "--name=ablations") == 2
    error = capsys.readouterr().err
    assert "4 rows failed" in error and "Traceback" in error and "KeyError: 'fit'" in error


def test_a_training_that_diverges_has_a_result(split_images, tmp_path, capsys, monkeypatch):
    args = [*write_study(tmp_path, split_images), "--name=ablations/flexvar-level"]
    far = {"init_args": LEVEL["model"]["init_args"] | {"optimizer": {"lr": 1e30}}}
    _write_yaml(tmp_path / "configs/flexvar/level.yaml", {"model": far})
    assert run(*args) == 0
    for seed in (0, 1):
        result = StudyResult.read(tmp_path / f"results/ablations/flexvar-level-{seed}.json")
        assert result.has_failed and result.line == "Training fails: numbers that are not finite."
    monkeypatch.setattr(stages, "main", lambda args: pytest.fail("is done again"))
    assert run(*args) == 0 and "2 of 2 results are there" in capsys.readouterr().out


def test_two_processes_share_the_rows(split_images, tmp_path, monkeypatch):
    write_study(tmp_path, split_images)
    chosen = Study(str(tmp_path / "study.yaml"), str(tmp_path / "results/tables.yaml"))
    runs = rows.StudyRuns(chosen, str(tmp_path / "runs"), str(tmp_path / "results"))
    asked = []
    monkeypatch.setattr(stages, "main", lambda args: asked.append(args[0]) or 2)
    tokenizer, generator = chosen.rows["tokenizers/vq"], chosen.rows["ablations/flexvar"]
    runs.folder(tokenizer, 0).parent.mkdir(parents=True)
    with rows.alone_in(runs.folder(tokenizer, 0)):
        failed = []
        left = list(study._not_completed(runs, [(tokenizer, 0), (generator, 1)], failed))
        assert left == [(tokenizer, 0), (generator, 1)] and failed == asked == []
    assert list(study._not_completed(runs, left, failed)) == [] and len(failed) == 2 and asked == ["fit", "fit"]


@pytest.mark.integration
def test_what_decides_numbers_is_in_the_identity(split_images, tmp_path):
    write_study(tmp_path, split_images)

    def identities() -> dict[str, str]:
        chosen = Study(str(tmp_path / "study.yaml"), str(tmp_path / "results/tables.yaml"))
        runs = rows.StudyRuns(chosen, str(tmp_path / "runs"), str(tmp_path / "results"))
        places = [(row, seed) for row in chosen.rows.values() for seed in row.seeds]
        return {f"{row.name}-{seed}": runs.configs.identity(row, seed).config for row, seed in places}

    before = identities()

    def changed(file: str, *names: str, value: object) -> set[str]:
        """Rows that a setting is of."""
        path = tmp_path / file
        text = path.read_text()
        content = yaml.safe_load(text)
        inner = content
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = value
        _write_yaml(path, content)
        after = identities()
        path.write_text(text)
        return {name for name, identity in after.items() if before[name] != identity}

    every = set(before)
    generators = {name for name in every if name.startswith("ablations")}
    of_flexvar = {"ablations/flexvar-0", "ablations/flexvar-1", "samplings/steps-3-0", "samplings/sizes-x2-0"}
    assert len(set(before.values())) == len(every) == 8
    for name, value in {"num_workers": 3, "eval_batch_size": 7, "shuffle_shards": 16}.items():  # the last: a default
        assert changed("configs/flexvar.yaml", "data", "init_args", name, value=value) == set()
    for name in ("num_images", "batch_size"):
        assert changed("configs/flexvar.yaml", *INIT, "samples", name, value=5) == set()
    checkpoints = [{"class_path": "RunCheckpoint", "init_args": {"every_n_train_steps": 7}}]
    assert changed("configs/flexvar.yaml", "trainer", "callbacks", value=checkpoints) == set()
    assert changed("configs/flexvar.yaml", "trainer", "precision", value="bf16-mixed") == generators | of_flexvar
    assert (
        changed("configs/flexvar.yaml", "model", "init_args", "label_drop_prob", value=0.5) == generators | of_flexvar
    )
    assert changed("configs/vq.yaml", "model", "init_args", "optimizer", "lr", value=0.002) == every
    assert changed("study.yaml", "groups", "ablations", "samples", value=8) == generators | of_flexvar
    assert changed("study.yaml", "samplings", "steps", "samples", value=8) == {"samplings/steps-3-0"}


def test_a_dataset_is_packed_once_and_as_the_config_says(split_images, tmp_path, monkeypatch):
    write_study(tmp_path, split_images)
    content = yaml.safe_load((tmp_path / "study.yaml").read_text()) | {"data": str(tmp_path / "packed")}

    def chosen() -> Study:
        _write_yaml(tmp_path / "study.yaml", content)
        return Study(str(tmp_path / "study.yaml"), str(tmp_path / "results/tables.yaml"))

    with pytest.raises(ValueError, match="no dataset in .*packed, and no `pack` in the config"):
        study._pack(chosen())
    content["pack"] = {"source": "FashionMNIST", "source.num_train": 10, "image_size": 32}
    asked = []

    def main(args: list[str]) -> int:
        asked.append(args)
        shutil.copytree(split_images, tmp_path / "packed")
        return 0

    monkeypatch.setattr(stages, "main", main)
    with rows.alone_in(tmp_path / "packed"):  # another process packs, and is waited for
        monkeypatch.setattr(study.time, "sleep", lambda _: main(["another"]))
        study._pack(chosen())
    assert asked == [["another"]]
    shutil.rmtree(tmp_path / "packed")
    study._pack(chosen())
    options = ["--source=FashionMNIST", "--source.num_train=10", "--image_size=32"]
    assert asked[1:] == [["data", "pack", *options, f"--output_dir={tmp_path / 'packed'}"]]


def test_costs_are_of_one_process_and_one_kind_of_machine(split_images, tmp_path, capsys):
    args = [*write_study(tmp_path, split_images), "--cost=true"]
    with rows.alone_in(tmp_path / "runs/cost"):
        assert run(*args) == 2
    assert "another process is at work in" in capsys.readouterr().err
    assert run(*args) == 0
    costs = read_costs(tmp_path / "results")
    assert costs.keys() == {"tokenizers/vq", "ablations/flexvar", "ablations/flexvar-level", "samplings/steps-3"}
    assert costs["samplings/steps-3"].parameters is None and costs["samplings/steps-3"].seconds_per_image > 0
    names = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line[9:12] == "h  "]
    assert names == [*costs, "in"]
    others = {name: dataclasses.replace(cost, machine="another") for name, cost in costs.items()}
    write_costs(tmp_path / "results", others | {"tokenizers/vq": costs["tokenizers/vq"]})
    assert run(*args, "--name=samplings/steps-3") == 0
    names = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line[9:12] == "h  "]
    assert names == ["tokenizers/vq", "samplings/steps-3", "in"]


def test_costs_of_a_tokenizer_are_of_the_precision_that_trains(split_images, tmp_path, monkeypatch):
    """Which on other machines than this one may be mixed."""
    is_mixed, forward = [], TokenizerLoss.forward
    monkeypatch.setattr(benchmark, "fastest", lambda device: "bf16-mixed")
    monkeypatch.setattr(
        TokenizerLoss, "forward", lambda *args: is_mixed.append(torch.is_autocast_enabled("cpu")) or forward(*args)
    )
    assert run(*write_study(tmp_path, split_images), "--cost=true", "--name=tokenizers") == 0
    assert is_mixed and all(is_mixed)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_time_that_is_up_stops_as_ctrl_c_does_also_in_the_background(handler):
    start, previous = time.monotonic(), signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(study._TimeIsUpError), study._at_most(0.1 / 60):
            while time.monotonic() < start + 10:
                time.sleep(0.01)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, previous)
    with pytest.raises(KeyboardInterrupt), study._at_most(10):
        raise KeyboardInterrupt


def test_requests_that_make_no_sense_are_refused(split_images, tmp_path, capsys):
    args = write_study(tmp_path, split_images)
    for typed, message in {
        "--minutes=0": "--minutes is 0.0, must be positive",
        "--name=ablations/flexvar-mamba": "has no row ablations/flexvar-mamba: it has tokenizers/vq, ",
        "--report --cost": "two things to do instead of running rows",
        "--report --name=ablations": "name ablations is not used, for --report writes the page of all: leave it out",
        "--report --minutes=5": "minutes 5.0 is not used, for --report writes the page of all",
        "--cost --minutes=5": "minutes 5.0 is not used, for --cost times every row to its end",
    }.items():
        assert run(*args, *typed.split()) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "results/ablations").mkdir()
    (tmp_path / "results/ablations/flexvar-0.json").write_text(json.dumps({"fid": 1}))
    assert run(*args, "--report") == 2
    assert "flexvar-0.json is no result of a study" in capsys.readouterr().err
