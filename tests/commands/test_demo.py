import json
import re

import numpy as np
import pytest
import yaml
from cli_fixtures import ROOT, run
from code_fixtures import flexvar_config, tokenizer_config
from PIL import Image

from scalear.evaluation.images import load_samples


@pytest.mark.parametrize(("factor", "precision"), [(0.01, "32-true"), (4.0, "bf16-mixed")])
def test_a_demo_makes_everything_from_two_configs(images, tmp_path, gain, factor, precision, capsys):
    gain(factor)
    for name, make in (("tokenizer", tokenizer_config), ("generator", flexvar_config)):
        config = make(tmp_path, images)
        config["trainer"]["precision"] = "auto"
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "demo"
    configs = [f"--{name}={tmp_path / name}.yaml" for name in ("tokenizer", "generator")]
    args = ["demo", *configs, f"--output_dir={folder}", "--generator_name=flexvar", "--fast=true"]
    assert run(*args, "--pictures=true") == 0
    samples, labels = load_samples(folder / "flexvar" / "samples.npz")
    assert samples.shape == (6, 32, 32, 1) and labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (folder / "flexvar" / "grid.png").is_file() and (folder / "tokenizer" / "tokenizer.safetensors").is_file()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"fid", "rfid", "accuracy", "psnr_scale_4", "seconds"} <= metrics.keys()
    assert metrics["trainer_precision"] == precision and metrics["machine"]
    assert metrics["seconds"].keys() >= {"train flexvar", "draw pictures", "total"}
    for name in ("flexible.png", "editing.png"):
        assert np.asarray(Image.open(folder / name)).std() > 0
    printed = capsys.readouterr().out
    assert "Training flexvar will take about" in printed and "FID of reconstructions" in printed
    assert run(*args) == 2
    assert "holds an earlier demo" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["demo-flexvar", "demo-var"])
def test_demos_of_the_makefile_name_configs_that_exist(target):
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile[makefile.index(f"{target}: ") :].split("\n\n")[0]
    configs = re.findall(r"configs/\S+\.yaml", recipe)
    assert len(configs) == 2 and all((ROOT / config).is_file() for config in configs)
