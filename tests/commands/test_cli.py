"""One experiment per model through the commands that a user types, and what is said when they cannot work."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import Experiment, run
from PIL import Image

from scalear.data.datamodule import ShardDataModule
from scalear.data.index import DatasetIndex
from scalear.evaluation.images import load_samples


def load(path) -> dict:
    return torch.load(path, weights_only=True)


def predict(experiment: Experiment, folder: str, *overrides: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples of the trained generator, put in a folder of their own."""
    args = (*experiment.generator(folder), f"--ckpt_path={experiment.checkpoint('flowar')}", *overrides)
    assert run("predict", *args) == 0
    return load_samples(experiment.root / folder / "samples.npz")


def test_a_tokenizer_run_leaves_weights_latents_and_numbers(experiment):
    folder = experiment.root / "kl"
    for name in ("tokenizer.safetensors", "fit.yaml", "predict.yaml", "checkpoints/last.ckpt"):
        assert (folder / name).is_file(), name
    index = json.loads((experiment.latents / "index.json").read_text())
    assert index["kind"] == "latents" and index["latents"]["moments_shape"] == [8, 4, 4]
    assert run("data", "verify", experiment.latents, "--num_workers=0") == 0
    assert run("test", *experiment.tokenizer(), f"--ckpt_path={experiment.checkpoint('kl')}") == 0
    measured = {"rfid", "psnr", "ssim", "line", "trainer_precision", "machine"}
    assert json.loads((folder / "metrics.json").read_text()).keys() == measured


def test_a_resumed_fit_equals_the_uninterrupted_one(experiment):
    assert run("fit", *experiment.generator("first"), "--trainer.max_steps=2") == 0
    assert run("fit", *experiment.generator("resumed"), f"--ckpt_path={experiment.checkpoint('first')}") == 0
    straight, resumed = (load(experiment.checkpoint(folder)) for folder in ("flowar", "resumed"))
    assert straight["global_step"] == resumed["global_step"] == 4
    for part in ("state_dict", "current_model_state"):
        for name, tensor in straight[part].items():
            assert torch.equal(resumed[part][name], tensor), name


def test_test_measures_the_samples_that_predict_would_write(experiment, predicted):
    folder = experiment.root / "tested"
    args = (*experiment.generator("tested"), f"--ckpt_path={experiment.checkpoint('flowar')}")
    assert run("test", *args) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"fid", "precision", "recall", "accuracy", "cautions"} <= metrics.keys()
    assert metrics["protocol"]["samples"]["images"] == 12
    line = r"FID-12 [\d.]+, IS .*\(ImageClassifier \(\w{8}\), 92.3% of .*, ref all of .* val, cfg 4.5, "
    assert re.match(line, metrics["line"])
    assert "seed 0, sampled in 32-true, measured in float32 on " in metrics["line"] and "EMA" in metrics["line"]
    tested, expected = (load_samples(place / "samples.npz") for place in (folder, predicted))
    assert all(np.array_equal(one, other) for one, other in zip(tested, expected, strict=True))


def test_samples_are_written_in_adm_layout_with_a_grid(predicted):
    images, labels = load_samples(predicted / "samples.npz")
    assert images.dtype == np.uint8 and images.shape == (12, 32, 32, 1)
    assert labels.dtype == np.int64 and labels.tolist() == [0, 1, 2] * 4
    assert Image.open(predicted / "grid.png").size == (2 * (3 * 34 + 2), 2 * (4 * 34 + 2))  # 3 classes, 4 rows, twice
    assert {"grid.png", "predict.yaml", "samples.npz"} <= {path.name for path in predicted.iterdir()}
    assert not list(predicted.glob("*.partial*"))


def test_a_sample_does_not_depend_on_batch_size(experiment, predicted):
    images, _ = load_samples(predicted / "samples.npz")  # in batches of 6
    others, _ = predict(experiment, "one", "--model.samples.batch_size=1")
    assert np.abs(images.astype(int) - others).max() <= 1  # a level, where rounding decides
    assert (images != others).mean() < 0.01


def test_what_is_typed_wins_over_the_checkpoint(experiment, predicted):
    images, _ = load_samples(predicted / "samples.npz")
    guided, _ = predict(experiment, "guided", "--model.guidance.weight=6")
    again, _ = predict(experiment, "repeated")
    assert not np.array_equal(images, guided) and np.array_equal(images, again)
    seeded, _ = predict(experiment, "seed", "--model.samples.seed=1")
    assert not np.array_equal(images, seeded)


def test_chosen_classes_and_label_files(experiment, tmp_path):
    _, labels = predict(experiment, "classes", "--model.samples.classes=[2,0]", "--model.samples.num_per_class=2")
    assert labels.tolist() == [2, 0, 2, 0]
    _, labels = predict(experiment, "counts", "--model.samples.num_per_class={2: 3, 0: 1}")
    assert labels.tolist() == [2, 0, 2, 2]
    (tmp_path / "labels.txt").write_text("1\n3\n0\n1\n1\n")  # 3 is the null class
    from_file, labels = predict(experiment, "file", f"--model.samples.label_file={tmp_path / 'labels.txt'}")
    assert labels.tolist() == [1, 3, 0, 1, 1]
    assert from_file.shape == (5, 32, 32, 1)


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    return path


@pytest.mark.parametrize(
    "command, overrides, messages",
    [
        ("fit", ["--model.head.width=3"], ["FlowHead", "Option 'width' is not accepted", "fit --help"]),
        ("fit", ["--trainer.steps=3"], ["unrecognized arguments: --trainer.steps"]),
        ("fit", ["--model.transformer.scales=[]"], ["scale list must not be empty; write for example"]),
        ("fit", ["--model.transformer.scales=[4,2]"], ["scale 2 follows 4 in 4,2", "sort the list"]),
        ("fit", ["--model.transformer.scales=[1,2]"], ["1,2 end at 2 tokens", "has 4", "let the list end"]),
        ("fit", ["--model.pyramid=CodePyramid"], ["CodePyramid needs", "this one has no codebook"]),
        ("fit", ["--model.head=TokenHead"], ["TokenHead predicts codes: take CodePyramid"]),
        ("fit", ["--model.transformer.num_classes=7"], ["has 3 classes, the generator 7: set transformer"]),
        ("fit", ["--data.data_dir=absent"], ["the dataset absent", "scalear data pack"]),
        ("fit", ["--ckpt_path=absent.ckpt"], ["--ckpt_path absent.ckpt does not exist"]),
        ("predict", [], ["scalear predict needs trained weights: give --ckpt_path"]),
        ("test", [], ["scalear test needs trained weights: give --ckpt_path"]),
        ("predict", ["--ckpt_path={flowar}", "--model.samples.classes=[0,4]"], ["label 4 is out of range", "0..2"]),
        (
            "predict",
            ["--ckpt_path={flowar}", "--model.samples.label_file=absent"],
            ["label file absent does not exist"],
        ),
        ("predict", ["--ckpt_path={flowar}", "--model.head.network.dim=16"], ["another model", "have another shape"]),
        ("predict", ["--ckpt_path={flowar}", "--model.head.network.depth=2"], ["another model", "are missing"]),
        ("predict", ["--ckpt_path={kl}"], ["is a checkpoint of another model", "fit.yaml"]),
        ("predict", ["--ckpt_path={weights}"], ["is not a readable checkpoint of `scalear fit`"]),
        ("fit", ["--model.tokenizer.weights=absent.safetensors"], ["no tokenizer weights at absent.safetensors"]),
        (
            "fit",
            ["--model.tokenizer.shape.num_res_blocks=2"],
            ["num_res_blocks is 1 in the file, 2 in", "Align"],
        ),
        ("sample", [], ["there is no command 'sample'; see scalear --help"]),
    ],
)
def test_what_cannot_work_ends_in_one_message(experiment, capsys, command, overrides, messages):
    places = {
        "flowar": experiment.checkpoint("flowar"),
        "kl": experiment.checkpoint("kl"),
        "weights": experiment.weights,
    }
    args = [override.format(**places) for override in overrides]
    assert run(command, *experiment.generator("refused"), *args) == 2
    _check_message(capsys, messages)


def test_a_truncated_checkpoint_is_named(experiment, capsys, tmp_path):
    path = truncated(Path(shutil.copy(experiment.checkpoint("flowar"), tmp_path)))
    assert run("predict", *experiment.generator("refused"), f"--ckpt_path={path}") == 2
    _check_message(capsys, [f"{path} is not a readable checkpoint of `scalear fit`"])


def test_latents_of_another_tokenizer_are_refused(experiment, capsys):
    assert run("fit", *experiment.tokenizer("other"), "--seed_everything=1") == 0
    capsys.readouterr()
    weights = f"--model.tokenizer.weights={experiment.root / 'other' / 'tokenizer.safetensors'}"
    assert run("fit", *experiment.generator("refused"), weights) == 2
    _check_message(capsys, [f"the latents in {experiment.latents} were made by", "cache latents again"])
    checkpoint = f"--ckpt_path={experiment.checkpoint('flowar')}"
    assert run("predict", *experiment.generator("refused"), weights, checkpoint) == 2
    _check_message(capsys, ["was trained on latents of a tokenizer with fingerprint", "set tokenizer.weights"])


def test_latents_are_not_overwritten(experiment, capsys):
    assert run("predict", *experiment.tokenizer(), f"--ckpt_path={experiment.checkpoint('kl')}") == 2
    _check_message(capsys, [f"{experiment.latents} holds a finished dataset; delete it"])


def test_latents_of_crops_say_the_size_of_these(experiment):
    args = [*experiment.tokenizer("crops"), "--data.random_crop=16"]
    assert run("predict", *args, f"--ckpt_path={experiment.checkpoint('kl')}") == 0
    latents = experiment.root / "crops" / "latents"
    data = ShardDataModule(str(experiment.images), 8, latents_dir=str(latents))
    assert data.image_size == 16 and data.index.latents.moments_shape[1:] == (2, 2)
    images = DatasetIndex.load(experiment.images)
    assert images.image_size == 32 and data.index.num_samples("train") == images.num_samples("train")


QUICKER = """
import shutil
from pathlib import Path
from lightning.pytorch import Callback

class Quicker(Callback):
    def __init__(self, finished: str):
        self.finished = finished

    def on_predict_start(self, trainer, *args):
        shutil.copytree(self.finished, Path(trainer.default_root_dir, "latents"))
"""


def test_latents_that_another_process_has_finished_meanwhile_are_kept(experiment, capsys, tmp_path, monkeypatch):
    """It began before, and ended when this one had been set up, but had not begun."""
    (tmp_path / "quicker.py").write_text(QUICKER)
    monkeypatch.syspath_prepend(tmp_path)
    callback = {"class_path": "quicker.Quicker", "init_args": {"finished": str(experiment.latents)}}
    args = [*experiment.tokenizer(tmp_path), f"--trainer.callbacks={json.dumps([callback])}"]
    assert run("predict", *args, f"--ckpt_path={experiment.checkpoint('kl')}") == 2
    _check_message(capsys, [f"{tmp_path / 'latents'} holds a finished dataset; delete it"])
    assert run("data", "verify", tmp_path / "latents", "--num_workers=0") == 0


def test_shards_of_a_killed_run_are_not_left_among_the_latents(experiment):
    folder = experiment.root / "again" / "latents"
    folder.mkdir(parents=True)
    stray = ["train-007-00000.tar", "val-000-00003.tar", "train-001-00000.tar.4711.partial"]
    for name in (*stray, "notes.tar", "train-00001.tar"):
        (folder / name).write_bytes(b"of a run that was killed, on eight ranks, or of somebody else")
    assert run("predict", *experiment.tokenizer("again"), f"--ckpt_path={experiment.checkpoint('kl')}") == 0
    left = {path.name for path in folder.iterdir()} - {path.name for path in experiment.latents.iterdir()}
    assert left == {"notes.tar", "train-00001.tar"}


def test_a_damaged_shard_is_named(experiment, capsys, tmp_path):
    shutil.copytree(experiment.latents, tmp_path / "latents")
    shard = truncated(next((tmp_path / "latents").glob("train-*.tar")))
    assert run("fit", *experiment.generator("refused"), f"--data.latents_dir={tmp_path / 'latents'}") == 2
    _check_message(capsys, [shard.name])


def _check_message(capsys, parts: list[str]) -> None:
    error = capsys.readouterr().err
    message = error[error.index("scalear: error:") :]
    for part in parts:
        assert part in message
    assert "Traceback" not in error and "usage:" not in error
    assert len(message) < 1200 and message.count("scalear: error:") == 1
