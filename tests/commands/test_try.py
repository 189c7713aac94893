"""`scalear try` on tiny pictures, to the end; what it refuses; and that it goes on where it was stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import ROOT, run
from PIL import Image

from scalear.commands.staged import stages
from scalear.data.index import DatasetIndex
from scalear.evaluation.images import load_samples
from scalear.yaml_files import read_yaml

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the base configs lie


@pytest.fixture
def pictures(tmp_path) -> Path:
    """60 in colour, with transparency, in three folders, and one file that is none."""
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    for number in range(60):
        path = folder / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 4), np.uint8)).save(path)
    (folder / "class0" / "broken.png").write_bytes(b"no picture")
    return folder


def try_here(pictures: Path, *more: str) -> int:
    fast = ("--fast", "--image_size=16", f"--output_dir={pictures.parent / 'try'}")
    return run("try", str(pictures), *fast, *more)


def test_a_folder_of_pictures_becomes_samples_and_numbers_also_if_stopped(pictures, capsys, monkeypatch):
    done, carry_out, folder = [], stages.main, pictures.parent / "try"

    def stops_twice(stage):
        done.append(stage[0])
        return 1 if len(done) in (2, 6) else carry_out(stage)

    monkeypatch.setattr(stages, "main", stops_twice)
    for _ in range(2):
        assert try_here(pictures) == 2
    assert try_here(pictures) == 0
    assert done == ["data", "fit", "fit", "fit", "test", "predict", "predict", "fit", "test"]
    index = DatasetIndex.load(folder / "data")
    packed = {split: index.num_samples(split) for split in index.splits}
    assert index.image_channels == 3 and sum(packed.values()) == 60 and packed["val"] in (8, 9)
    samples, labels = load_samples(folder / "flowar" / "samples.npz")
    assert samples.shape == (6, 16, 16, 3) and labels.tolist() == [0, 1, 2, 0, 1, 2]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"fid", "rfid", "accuracy", "nearest", "seconds"} <= metrics.keys() and metrics["nearest"] > 0
    assert metrics["pictures"] == 61 and metrics["packed"] == packed
    printed = capsys.readouterr().out
    assert "distance to training images" in printed and "times as far" in printed
    assert Image.open(folder / "neighbours.png").width > 16 and (folder / "flowar/grid.png").is_file()
    assert try_here(pictures) == 0 and "holds this try, finished" in capsys.readouterr().out
    assert len(done) == 9
    assert try_here(pictures, "--seed=1") == 2
    assert "which differs in seed: choose another --output_dir" in capsys.readouterr().err


def test_pictures_without_classes_and_what_comes_of_them_runs_again(pictures):
    folder = pictures.parent / "try"
    assert try_here(pictures, "--family=flexvar", "--labelled=false", "--flip=false") == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"fid", "rfid", "nearest"} <= metrics.keys() and "accuracy" not in metrics
    config = read_yaml(folder / "flexvar.yaml")
    assert config["trainer"]["precision"] == "auto" and config["data"]["init_args"]["flip"] is False
    assert run("fit", "-c", str(folder / "flexvar.yaml"), "--trainer.fast_dev_run") == 0  # as it stands


def test_wrong_input_is_one_line_before_any_work(pictures, tmp_path, capsys):
    def refused(*args) -> str:
        assert run("try", *args) == 2
        said = capsys.readouterr().err
        assert said.startswith("scalear: error: ") and said.count("\n") == 1
        return said

    out = f"--output_dir={tmp_path / 'out'}"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is not a folder" in refused(tmp_path / "nowhere", out)
    assert "holds no images" in refused(empty, out)
    assert "image_size is 60" in refused(pictures, out, "--image_size=60")
    assert "minutes is 1" in refused(pictures, out, "--minutes=1")
    assert "20 pictures are too few" in refused(pictures / "class1", out)
    assert "lies in" in refused(pictures, f"--output_dir={pictures / 'try'}")
    assert not (tmp_path / "out").exists() and not (pictures / "try").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "holds something else than a try" in refused(pictures, out)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
