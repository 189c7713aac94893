"""What TensorBoard itself says of runs: which tab it opens, the charts in it, and the table that compares them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from cli_fixtures import Experiment, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG

from scalear.commands.board import tensorboard

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(experiment: Experiment, tmp_path_factory) -> Path:
    """A tokenizer, and a generator that was tested; both have been resumed."""
    folder = tmp_path_factory.mktemp("runs")
    more = (
        "--ckpt_path=last",
        "--trainer.max_steps=5",
        "--trainer.val_check_interval=1",
        "--trainer.log_every_n_steps=1",
    )
    for name, typed in (
        ("kl", experiment.tokenizer(folder / "kl")),
        ("flowar", experiment.generator(folder / "flowar")),
    ):
        shutil.copytree(experiment.root / name, folder / name, ignore=shutil.ignore_patterns("latents"))
        assert run("fit", *typed, *more) == 0
    assert run("test", *typed, f"--ckpt_path={folder / 'flowar/checkpoints/last.ckpt'}") == 0
    return folder


@pytest.fixture(scope="module")
def ask(runs) -> Ask:
    """What the page would ask a server for: JSON of a path below /data."""
    address = tensorboard(runs, load_fast="false", reload_interval=0, port=0).launch()

    def answer(path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body else None
        with urlopen(Request(f"{address}data/{path}", data, {"Content-Type": "application/json"})) as response:
            return json.load(response)

    return answer


def of_tag(folder: Path, tag: str) -> list[Any]:
    """Everything that all event files of a folder hold under a tag."""
    events = (event for path in sorted(folder.glob("events.*")) for event in EventFileLoader(str(path)).Load())
    return [value for event in events for value in event.summary.value if value.tag == tag]


def scalars(folder: Path) -> set[str]:
    return set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])


def test_the_page_opens_on_the_charts_that_were_laid_out(ask):
    plugins = ask("plugins_listing")
    assert next(name for name, plugin in plugins.items() if plugin["enabled"]) == "custom_scalars"
    assert plugins["images"]["enabled"] and plugins["hparams"]["enabled"]


def test_charts_show_what_the_runs_logged(ask, runs):
    layout = {
        category["title"]: {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
        for category in ask("plugin/custom_scalars/layout")["category"]
    }
    assert list(layout) == ["losses", "quality", "speed", "learning rate"]
    logged = scalars(runs / "kl") | scalars(runs / "flowar")
    shown = {
        title: {name for name in logged for pattern in patterns if re.match(pattern, name)}
        for charts in layout.values()
        for title, patterns in charts.items()
    }
    assert all(shown.values()), shown
    assert shown["loss"] == {"train/loss", "val/loss"}
    assert shown["loss of each scale"] == {f"train/loss_scale_{size}" for size in (1, 2, 4)}
    assert shown["FID"] == {"test/fid", "test/fid_floor"} & logged and "test/fid" in logged
    assert shown["rFID"] == {"val/rfid"} and shown["learning rate"] == {"train/lr"}
    assert shown["parts of a tokenizer's loss"] == {"train/l1", "train/l2", "train/kl"}


def test_no_chart_of_epochs_and_none_twice(runs):
    for name in ("kl", "flowar"):
        logged = scalars(runs / name)
        assert "epoch" not in logged
        assert [tag for tag in logged if "lr" in tag] == ["train/lr"]


def test_the_table_compares_runs_by_fid(ask, runs):
    table = ask("plugin/hparams/experiment", experimentName="")
    settings = {column["name"] for column in table["hparamInfos"]}
    numbers = [column["name"]["tag"] for column in table["metricInfos"]]
    assert numbers[0] == "test/fid"
    rows = ask(
        "plugin/hparams/session_groups",
        experimentName="",
        allowedStatuses=["STATUS_UNKNOWN"],
        colParams=[],
        startIndex=0,
        sliceSize=9,
    )["sessionGroups"]
    rows = {row["name"]: row for row in rows}
    assert rows.keys() == {"kl", "flowar"}
    generator = rows["flowar"]["hparams"]
    assert generator.keys() <= settings
    assert generator["model.optimizer.lr"] == 0.01 and generator["trainer.max_steps"] == 4
    fids = [value["value"] for value in rows["flowar"]["metricValues"] if value["name"]["tag"] == "test/fid"]
    assert fids == [pytest.approx(json.loads((runs / "flowar/metrics.json").read_text())["fid"], rel=1e-6)]


def test_a_run_that_goes_on_stays_one_line_and_a_new_one_takes_its_place(experiment: Experiment, runs, tmp_path):
    assert len(of_tag(runs / "flowar", SESSION_START_INFO_TAG)) == 1
    folder = shutil.copytree(runs / "flowar", tmp_path / "run")
    assert run("fit", *experiment.generator(folder), "--trainer.max_steps=1", "--force") == 0
    assert len(of_tag(folder, SESSION_START_INFO_TAG)) == len(of_tag(folder, "train/loss")) == 1


def test_what_there_is_not_is_said(capsys):
    assert run("board", "--logdir=absent") == 2
    assert "there is no folder absent: train first, or give --logdir" in capsys.readouterr().err
