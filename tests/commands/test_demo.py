import json
import re

import numpy as np
import pytest
import yaml
from cli_fixtures import ROOT, run
from code_fixtures import flexvar_config, tokenizer_config
from PIL import Image

from scalear.commands.staged import stages
from scalear.evaluation.images import load_samples


def test_a_demo_makes_everything_from_two_configs(images, tmp_path, gain, capsys):
    gain(0.01)
    for name, make in (("tokenizer", tokenizer_config), ("generator", flexvar_config)):
        config = make(tmp_path, images)
        config["trainer"]["precision"] = "auto"
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "demo"
    configs = [f"--{name}={tmp_path / name}.yaml" for name in ("tokenizer", "generator")]
    args = ["demo", *configs, f"--output_dir={folder}", "--generator_name=flexvar", "--fast=true"]
    assert run(*args, "--pictures=true") == 0
    samples, labels = load_samples(folder / "flexvar" / "samples.npz")
    assert samples.shape == (6, 32, 32, 1) and labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (folder / "flexvar" / "grid.png").is_file() and (folder / "tokenizer" / "tokenizer.safetensors").is_file()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"fid", "rfid", "accuracy", "psnr_scale_4", "seconds"} <= metrics.keys()
    assert metrics["trainer_precision"] == "32-true" and metrics["machine"]
    assert metrics["seconds"].keys() >= {"train flexvar", "draw pictures", "total"}
    for name in ("flexible.png", "editing.png"):
        assert np.asarray(Image.open(folder / name)).std() > 0
    printed = capsys.readouterr().out
    assert "Training flexvar will take about" in printed and "FID of reconstructions" in printed
    assert run(*args) == 2  # without pictures it is another demo
    assert "holds an earlier demo, which differs in pictures" in capsys.readouterr().err


def test_a_demo_that_was_stopped_goes_on_and_another_is_refused(images, tmp_path, gain, capsys, monkeypatch):
    gain(4.0)
    for name, make in (("tokenizer", tokenizer_config), ("generator", flexvar_config)):
        config = make(tmp_path, images)
        config["trainer"]["precision"] = "auto"
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "demo"
    configs = [f"--{name}={tmp_path / name}.yaml" for name in ("tokenizer", "generator")]
    args = ["demo", *configs, f"--output_dir={folder}", "--generator_name=flexvar", "--fast=true"]
    carry_out = stages.main
    done = []

    def stops_at_sampling(stage):
        done.append(stage[0])
        return 1 if stage[0] == "test" and len(done) > 4 else carry_out(stage)

    monkeypatch.setattr(stages, "main", stops_at_sampling)
    assert run(*args) == 2 and done == ["fit", "test", "predict", "fit", "test"]
    assert not (folder / "metrics.json").exists()
    (folder / "flexvar/checkpoints/last.ckpt").rename(tmp_path / "kept")  # as if it had been stopped earlier
    record = json.loads((folder / "demo.json").read_text())
    del record["seconds"]["train flexvar"], record["seconds"]["cache latents"]  # finished, but not yet recorded
    (folder / "demo.json").write_text(json.dumps(record))
    done.clear()
    assert run(*args) == 0 and done == ["fit", "test"]
    assert "cache latents: done already" in capsys.readouterr().out
    metrics = (folder / "metrics.json").read_bytes()
    assert json.loads(metrics)["trainer_precision"] == "bf16-mixed"
    assert run(*args) == 0 and done == ["fit", "test"]
    assert "holds this demo, finished" in capsys.readouterr().out and (folder / "metrics.json").read_bytes() == metrics
    assert run(*args, "--seed=1") == 2
    assert "which differs in seed: choose another --output_dir" in capsys.readouterr().err
    assert run(*args, f"--output_dir={tmp_path}") == 2
    assert "holds something else than a demo" in capsys.readouterr().err


def test_a_demo_that_was_refused_leaves_its_folder_to_the_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = ["demo", f"--output_dir={tmp_path / 'demo'}"]
    assert run(*args, "--generator=configs/fashion/flowar/adaln.yaml") == 2  # an overlay
    error = capsys.readouterr().err
    assert "Traceback" not in error and not (tmp_path / "demo").exists(), error
    monkeypatch.setattr(stages, "main", lambda args: 2)
    for settings in ([], ["--seed=1"]):
        assert run(*args, *settings) == 2
        assert "the demo stopped at stage 1, train tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["demo-flexvar", "demo-var"])
def test_demos_of_the_makefile_name_configs_that_exist(target):
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile[makefile.index(f"{target}: ") :].split("\n\n")[0]
    configs = re.findall(r"configs/\S+\.yaml", recipe)
    assert len(configs) == 2 and all((ROOT / config).is_file() for config in configs)
