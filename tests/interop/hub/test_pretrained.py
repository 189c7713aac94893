"""Models as folders: what `scalear predict` samples, without a Trainer."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import NUM_CLASSES, ROOT, Experiment, run

from scalear.class_paths import build, build_class
from scalear.evaluation.images import load_samples
from scalear.interop.hub.pretrained import ScaleARModel
from scalear.models.generator import Generator
from scalear.models.weights import generator_metadata
from scalear.pyramid import Pyramid
from scalear.tensor_files import write_tensors


def export(experiment: Experiment, folder: str, *overrides: str) -> int:
    return run(
        "export",
        *experiment.generator("flowar"),
        f"--ckpt_path={experiment.checkpoint('flowar')}",
        f"--output_dir={experiment.root / folder}",
        *overrides,
    )


def predict(experiment: Experiment, *overrides: str) -> tuple[np.ndarray, np.ndarray]:
    checkpoint = f"--ckpt_path={experiment.checkpoint('flowar')}"
    assert run("predict", *experiment.generator("for_export"), checkpoint, *overrides, "--force") == 0
    return load_samples(experiment.root / "for_export" / "samples.npz")


@pytest.fixture(scope="module")
def exported(experiment) -> Path:
    assert export(experiment, "exported") == 0
    return experiment.root / "exported"


def test_an_exported_model_samples_what_predict_does(experiment, exported):
    images, labels = predict(experiment, "--model.samples.batch_size=12")
    model = ScaleARModel.from_pretrained(exported)
    float32 = {"precision": "32-true"}  # as the experiment's runs
    assert np.array_equal(model.generate(labels.tolist(), output_type="np", **float32), images)
    other = predict(experiment, "--model.samples.batch_size=12", "--model.samples.seed=5")[0][[7, 3]]
    one = model.generate(labels[[7, 3]].tolist(), seeds=[(5, 7), (5, 3)], output_type="np", **float32)
    assert np.abs(one.astype(int) - other).max() <= 1  # a level, where rounding decides
    picture = model.generate([2], seeds=[8], **float32)[0]
    assert picture.size == (32, 32) and np.abs(np.asarray(picture)[..., None].astype(int) - images[8]).max() <= 1


def test_mixed_precision_can_be_asked_for_and_guidance_of_the_run_is_kept(experiment):
    changes = ("--trainer.precision=bf16-mixed", "--model.guidance.weight=2.5")
    assert export(experiment, "mixed", *changes) == 0
    images, labels = predict(experiment, "--model.samples.batch_size=12", *changes)
    model = ScaleARModel.from_pretrained(experiment.root / "mixed")
    in_bf16 = model.generate(labels.tolist(), output_type="np", precision="bf16-mixed")
    assert np.array_equal(in_bf16, images)
    assert not np.array_equal(model.generate(labels.tolist(), guidance=1.0, output_type="np"), in_bf16)
    with pytest.raises(ValueError, match="positions for scales 1,2,4 and cannot do 1,2,3"):
        model.generate([0], scales="1,2,3")


def test_the_folder_says_what_it_holds(experiment, exported):
    assert {path.name for path in exported.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((exported / "config.json").read_text())
    assert config["scales"] == "1,2,4" and config["scalear_version"]
    assert config["class_names"] == [f"class{label}" for label in range(NUM_CLASSES)]
    assert "weights" not in config["model"]["init_args"]["tokenizer"]["init_args"] and str(
        experiment.root
    ) not in json.dumps(config)
    model = ScaleARModel.from_pretrained(exported)
    by_name = model.generate(["class1"], seeds=[4], output_type="np")
    assert np.array_equal(by_name, model.generate([1], seeds=[4], output_type="np"))


def test_converted_weights_need_no_checkpoint(experiment, exported, tmp_path):
    generator = ScaleARModel.from_pretrained(exported).model.generator
    write_tensors(tmp_path / "converted.safetensors", generator.state_dict(), generator_metadata(generator))
    weights = f"--model.weights={tmp_path / 'converted.safetensors'}"
    assert run("export", *experiment.generator("flowar"), weights, f"--output_dir={tmp_path / 'model'}") == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (exported / name).read_bytes()


def test_nothing_is_exported_without_weights(experiment, capsys, tmp_path):
    assert run("export", *experiment.generator("flowar"), f"--output_dir={tmp_path / 'model'}") == 2
    assert "give --ckpt_path, or --model.weights" in capsys.readouterr().err


def test_the_config_beside_a_run_exports_it(experiment, exported):
    output = experiment.root / "from_fit"
    config = ("-c", experiment.root / "flowar" / "fit.yaml", f"--ckpt_path={experiment.checkpoint('flowar')}")
    assert run("export", *config, f"--output_dir={output}") == 0
    for name in ("config.json", "model.safetensors"):
        assert (output / name).read_bytes() == (exported / name).read_bytes()


def test_a_model_saved_again_is_the_same(exported, tmp_path):
    ScaleARModel.from_pretrained(exported).save_pretrained(tmp_path / "again")
    for path in exported.iterdir():
        again = tmp_path / "again" / path.name
        assert path.read_bytes() == again.read_bytes() and path.stat().st_mode == again.stat().st_mode
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1  # weights are as readable as the rest


def test_what_was_replaced_in_a_model_is_saved_with_it(exported, tmp_path):
    model = ScaleARModel.from_pretrained(exported)
    model.model.sampling = replace(model.model.sampling, num_steps=7)
    model.model.guidance = replace(model.model.guidance, weight=2.5)
    model.scales, model.class_names = None, ["a", "b", "c"]
    model.save_pretrained(tmp_path / "model")
    again = ScaleARModel.from_pretrained(tmp_path / "model")
    assert (again.model.sampling, again.model.guidance) == (model.model.sampling, model.model.guidance)
    assert (again.scales, again.class_names) == (None, ["a", "b", "c"])


def test_no_lightning_is_needed(exported):
    program = (
        "import sys; from scalear.interop.hub.pretrained import ScaleARModel; import scalear.interop.hub.diffusers;"
        f"ScaleARModel.from_pretrained({str(exported)!r}).generate([0]); assert 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--ckpt_path=absent.ckpt"], "absent.ckpt does not exist"),
        (["--model.head.network.depth=2"], "checkpoint of another model"),
        (["--output_dir={images}"], "is not empty; choose another folder"),
        (["--output_dir={images}", "--force=true"], "also holds"),
    ],
)
def test_what_cannot_be_exported_leaves_no_trace(experiment, capsys, overrides, message):
    before = sorted(experiment.root.rglob("*"))
    overrides = [override.format(images=experiment.images) for override in overrides]
    assert export(experiment, "not-exported", *overrides) == 2
    assert message in capsys.readouterr().err
    assert sorted(experiment.root.rglob("*")) == before


def test_tokenizers_are_not_exported(experiment, capsys):
    places = (f"--ckpt_path={experiment.checkpoint('kl')}", f"--output_dir={experiment.root / 'not-exported'}")
    assert run("export", *experiment.tokenizer(), *places) == 2
    assert "scalear export takes generators" in capsys.readouterr().err


def test_an_exported_model_is_replaced_only_by_force(experiment, exported, tmp_path):
    model = ScaleARModel.from_pretrained(exported)
    folder = shutil.copytree(exported, tmp_path / "model")
    with pytest.raises(ValueError, match="is not empty"):
        model.save_pretrained(folder)
    (folder / "config.json").write_text("old")
    model.save_pretrained(folder, force=True)
    assert (folder / "config.json").read_bytes() == (exported / "config.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_and_absent_models_are_named(exported, tmp_path, monkeypatch):
    def broken(name: str, content: bytes) -> Path:
        folder = shutil.copytree(exported, tmp_path / str(len(list(tmp_path.iterdir()))))
        (folder / name).write_bytes(content)
        return folder

    weights = (exported / "model.safetensors").read_bytes()
    config = json.loads((exported / "config.json").read_text())
    cases = {
        broken("model.safetensors", weights[:1000]): "is damaged, or not what config.json",
        broken("config.json", b"{"): "is not JSON",
        broken("config.json", b'{"architectures": ["Bert"]}'): "not one of this version of scalear: it has no model",
        tmp_path: "holds no config.json",
        "some/folder/that/is/absent": "neither a folder nor",
    }
    for model, message in (
        (7, "a part of a model has a class_path and init_args, and this is 7"),
        ({"init_args": {}}, "a part of a model has a class_path"),
        ({"class_path": config["model"]["class_path"]}, "cannot build scalear.image_model.ImageModel"),
    ):
        cases[broken("config.json", json.dumps(config | {"model": model}).encode())] = message
    head = config["model"]["init_args"]["head"]
    head["init_args"]["network"]["init_args"]["depth"] = 3
    cases[broken("config.json", json.dumps(config).encode())] = "is damaged, or not what config.json"
    head["class_path"] = "scalear.models.later.Head"
    cases[broken("config.json", json.dumps(config).encode())] = "scalear.models.later"
    for folder, message in cases.items():
        with pytest.raises(ValueError, match=message):
            ScaleARModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="nobody/nothing is neither a folder nor .* from the Hub"):
        ScaleARModel.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "labels, seeds, message",
    [([3, 9], None, "label 9 is out of range"), ([], None, "no labels"), ([0], [1, 2], "2 seeds for 1 labels")],
)
def test_impossible_requests_are_refused(exported, labels, seeds, message):
    with pytest.raises(ValueError, match=message):
        ScaleARModel.from_pretrained(exported).generate(labels, seeds)


def test_a_config_imports_nothing_but_scalear():
    sys.modules.pop("this", None)
    head = {"head": {"class_path": "this.Zen", "init_args": {}}}
    for path, arguments, message in (
        ("this.Zen", {}, "this.Zen is not a part of scalear"),
        ("subprocess.Popen", {}, "subprocess.Popen is not a part of scalear"),
        ("torch.nn.Linear", {}, "torch.nn.Linear is not a Generator"),
        ("scalear.models.generator.Generator", head, "this.Zen is not a part of scalear"),
        ("scalear.models.generator.Generator", {"head": "this.Zen"}, "this.Zen is not a part of scalear"),
    ):
        with pytest.raises(ValueError, match=message):
            build(Generator, {"class_path": path, "init_args": arguments})
    for path, arguments, message in (
        ("torch.nn.Linear", {}, "torch.nn.Linear is not a Pyramid"),
        ("scalear.pyramid.LatentPyramid", {"patch_size": ["this.Zen"]}, "this.Zen is not a part of scalear"),
    ):
        with pytest.raises(ValueError, match=message):
            build_class(Pyramid, {"class_path": path, "init_args": arguments})
    assert "this" not in sys.modules
