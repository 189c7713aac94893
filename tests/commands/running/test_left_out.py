"""What the laptop configs leave to the dataset and the tokenizer, and what becomes of a value that contradicts them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import ROOT, run
from PIL import Image

from scalear.commands.run import PartsOnly
from scalear.data.index import DatasetIndex, Shard
from scalear.evaluation.classifier import classifier_record, no_classifier
from scalear.image_model import ImageModel
from scalear.models.transformer import ScaleTransformer
from scalear.schedules import doubling_schedule, with_scales_between

pytestmark = pytest.mark.integration

GENERATORS = ["flowar", "flexvar", "var"]


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Path:
    """90 pictures in colour of 32 px, in five classes."""
    folder, rng = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for number in range(90):
        path = folder / "pictures" / f"class{number % 5}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    source = ("--source=ImageFolder", f"--source.root={folder / 'pictures'}", "--source.val_fraction=0.2")
    assert run("data", "pack", *source, f"--output_dir={folder / 'data'}", "--image_size=32", "--num_workers=0") == 0
    return folder / "data"


def parts(name: str, *typed: str) -> PartsOnly:
    """Model and data of a laptop config, tensors on the meta device."""
    with torch.device("meta"):
        return PartsOnly(["-c", str(ROOT / f"configs/fashion/{name}.yaml"), *typed])


def described(folder: Path, size: int, channels: int = 3, classes: int = 5) -> str:
    """The option that names a dataset that has an index only."""
    names = [f"class {label}" for label in range(classes)]
    shards = {split: [Shard(f"{split}.tar", 1000, "")] for split in ("train", "val")}
    DatasetIndex("described", "images", size, channels, names, shards).save(folder)
    return f"--data.data_dir={folder}"


@pytest.mark.parametrize(
    "side, doubling, between",
    [
        (1, "1", "1"),
        (2, "1,2", "1,2"),
        (4, "1,2,4", "1,2,3,4"),
        (8, "1,2,4,8", "1,2,3,4,6,8"),
        (12, "1,2,3,6,12", "1,2,3,4,6,9,12"),
        (16, "1,2,4,8,16", "1,2,3,4,6,8,12,16"),
    ],
)
def test_scales_go_up_to_the_latent(side, doubling, between):
    schedule = doubling_schedule(side)
    assert (str(schedule), str(with_scales_between(schedule))) == (doubling, between)


@pytest.mark.parametrize(
    "name, scales, parameters",
    [("flowar", "1,2,4", 6_596_180), ("flexvar", "1,2,4,8", 4_287_058), ("var", "1,2,4,8", 4_193_042)],
)
def test_the_demos_are_what_they_were(monkeypatch, name, scales, parameters):
    monkeypatch.chdir(ROOT)
    model: ImageModel = parts(name).config_init.model.model
    assert (model.tokenizer.image_channels, model.num_classes, str(model.schedule)) == (1, 10, scales)
    assert sum(parameter.numel() for parameter in model.generator.parameters()) == parameters


def test_the_measured_scales_of_the_demo_are_what_they_were(monkeypatch):
    monkeypatch.chdir(ROOT)
    module = parts("vq").config_init.model
    assert str(module.metrics.schedule) == "1,2,3,4,6,8" and module.metrics.rfid is not None
    assert str(parts("rvq").config_init.model.metrics.schedule) == "1,2,4,8"


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_fit_pictures_of_64_px_in_colour(tmp_path, name):
    made = parts(name, described(tmp_path, 64))
    module, config = made.config_init.model, made.config.model.init_args
    model = module.model
    stride = 8 if name == "flowar" else 4
    side = 64 // stride
    assert (model.tokenizer.image_channels, model.num_classes) == (3, 5)
    assert model.image_size() == (64, 64) and model.schedule == doubling_schedule(side)
    assert module.report.data_dir == str(tmp_path)
    assert module.report.extractor.weights == str(tmp_path / "classifier.safetensors")
    if name == "flexvar":
        assert config.transformer.init_args.positions.init_args.side == side == module.schedules.final[0]
        longest = max(module.schedules.draw(0, number).num_scales for number in range(20))
        assert longest == model.schedule.num_scales


def test_what_is_written_of_scales_holds_for_all_that_is_left_out(tmp_path):
    data = described(tmp_path, 64)
    made = parts("var", data, "--model.transformer.scales=[1,3,16]").config_init.model.model
    assert str(made.tokenizer.schedule) == str(made.schedule) == "1,3,16"
    made = parts("var", data, "--model.tokenizer.bottleneck.scales=[1,5,16]").config_init.model.model
    assert str(made.tokenizer.schedule) == str(made.schedule) == "1,5,16"
    made = parts("flowar", data, "--model.pyramid.patch_size=2").config_init.model.model
    assert str(made.schedule) == "1,2,4" and made.image_size() == (64, 64)
    made = parts("flowar", data, "--data.random_crop=32", "--data.latents_dir=null").config_init.model.model
    assert str(made.schedule) == "1,2,4" and made.image_size() == (32, 32)


class OneOfMine(ScaleTransformer):
    """Hands on what it does not know."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)


def test_classes_of_ones_own_inherit_what_may_be_left_out(tmp_path):
    own = f"--model.transformer={__name__}.OneOfMine"
    model = parts("flowar", described(tmp_path, 64), own).config_init.model.model
    assert isinstance(model.generator.transformer, OneOfMine)
    assert (model.num_classes, model.schedule) == (5, doubling_schedule(8))


def test_a_config_is_printed_as_it_runs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("fit", "-c", ROOT / "configs/fashion/var.yaml", described(tmp_path, 32), "--print_config")
    printed = capsys.readouterr().out
    assert "num_classes: 5\n" in printed and "image_channels: 3\n" in printed


@pytest.mark.parametrize("command", ["fit", "predict", "edit refine"])
def test_a_dataset_that_is_not_there_is_named(command, tmp_path, capsys):
    name = "flexvar" if "edit" in command else "flowar"
    typed = ("-c", ROOT / f"configs/fashion/{name}.yaml", f"--ckpt_path={tmp_path / 'last.ckpt'}")
    assert run(*command.split(), *typed, f"--data.data_dir={tmp_path / 'absent'}") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"image_channels of ConvTokenizer is left out of the config, and the dataset {tmp_path}/absent" in line
    assert "scalear data pack" in line and "take fit.yaml of its folder as -c" in line


def test_laptop_configs_train_on_any_dataset_that_is_named(coloured, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def scalear(command: str, name: str, *typed: str) -> int:
        config = ("-c", ROOT / f"configs/fashion/{name}.yaml", f"--data.data_dir={coloured}")
        return run(command, *config, "--data.batch_size=16", *typed)

    one = "--trainer.max_steps=1"
    assert scalear("fit", "kl", one) == 0
    assert "rFID is not measured: no classifier at" in caplog.text
    assert f"`scalear fit -c configs/fashion/classifier.yaml --data.data_dir {coloured} " in caplog.text
    assert scalear("predict", "kl", "--ckpt_path=last") == 0
    assert scalear("fit", "flowar", one) == 0
    resolved = (tmp_path / "runs/fashion/flowar/fit.yaml").read_text()
    assert "num_classes: 5\n" in resolved and "image_channels: 3\n" in resolved
    assert scalear("test", "flowar", "--ckpt_path=last") == 2
    assert f"no classifier at {coloured / 'classifier.safetensors'}; train one with" in capsys.readouterr().err
    assert scalear("fit", "classifier", one, "--trainer.val_check_interval=1") == 0
    assert scalear("test", "flowar", "--ckpt_path=last", "--model.samples.num_per_class=2") == 0
    metrics = json.loads((tmp_path / "runs/fashion/flowar/metrics.json").read_text())
    assert "of labels right, trained on data, ref" in metrics["line"] and {"fid", "accuracy"} <= metrics.keys()
    # of a file that says all, without the data: nothing is left to be found
    elsewhere = PartsOnly(["-c", str(tmp_path / "runs/fashion/flowar/fit.yaml"), "--data.data_dir=absent"])
    assert elsewhere.config_init.model.model.num_classes == 5


def test_what_is_said_to_train_classifiers_does_so_for_two_datasets(coloured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs/fashion", "configs/fashion")
    for name in ("one", "two"):
        path = shutil.copytree(coloured, tmp_path / name) / "classifier.safetensors"
        path.unlink(missing_ok=True)  # of another test
        command = no_classifier(path).split("`")[1].split()[1:]
        assert run(*command, "--trainer.max_steps=1", "--data.batch_size=16", "--trainer.val_check_interval=1") == 0
        assert classifier_record(path)["checksum"] and (tmp_path / f"runs/{name}/classifier/fit.yaml").is_file()


@pytest.mark.parametrize(
    "config, typed, message",
    [
        ("kl", "model.tokenizer.image_channels=1", "holds images of 3 channel(s), the tokenizer is built for 1"),
        ("flowar", "model.transformer.num_classes=10", "has 5 classes, the generator 10"),
        ("flowar", "model.transformer.scales=[1,2,8]", "scales 1,2,8 end at 8 tokens, but the latent has 4"),
        ("flexvar", "model.schedules.side=4", "(PaperSchedules) does not fit: scales 4 end at 4 tokens"),
        ("vq", "model.scales=[1,16]", "the last size 16x16 of scales is larger than the latent, 8x8"),
    ],
)
def test_what_contradicts_the_dataset_is_refused(coloured, tmp_path, capsys, config, typed, message):
    args = ["-c", ROOT / f"configs/fashion/{config}.yaml", f"--data.data_dir={coloured}", f"--{typed}"]
    if config in GENERATORS:
        args += ["--data.latents_dir=null", "--model.tokenizer.weights=null"]
    assert run("fit", *args, f"--trainer.default_root_dir={tmp_path}") == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_latents_of_other_images_are_refused(experiment, coloured, tmp_path, capsys):
    args = [*experiment.generator(tmp_path), f"--data.data_dir={coloured}", "--model.tokenizer.weights=null"]
    assert run("fit", *args) == 2
    error = capsys.readouterr().err
    assert f"{experiment.latents} holds latents of other images than {coloured}: " in error
    assert json.loads((experiment.latents / "index.json").read_text())["kind"] == "latents"


@pytest.mark.parametrize("there", [True, False])
def test_latents_that_are_given_as_the_dataset_are_refused_first(experiment, tmp_path, capsys, there):
    """Whether or not there are latents where the config looks for them."""
    typed = [f"--data.data_dir={experiment.latents}", *([] if there else ["--data.latents_dir=absent"])]
    assert run("fit", *experiment.generator(tmp_path), *typed) == 2
    error = capsys.readouterr().err
    assert f"{experiment.latents} holds latents: give it as data.latents_dir, and the images" in error
