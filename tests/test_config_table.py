"""docs/configs.md against the files it lists, and what follows from the batches and epochs of recipes."""

import re
from math import prod
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/configs.md").read_text()
IMAGENET_FLOWAR = sorted(ROOT.glob("configs/imagenet256/flowar-*.yaml"))


def test_every_config_is_listed():
    names = [path.name for path in ROOT.glob("configs/**/*.yaml")]
    assert [name for name in names if f"| `{name}` |" not in TABLE] == []


# Batch, epochs, base learning rate and last learning rate over the peak
CODE_RECIPES = {
    "imagenet256/var-d12": (768, 200, 1e-4, 0.1),
    "imagenet256/var-d16": (768, 200, 1e-4, 0.1),
    "imagenet256/var-d20": (768, 250, 1e-4, 0.1),
    "imagenet256/var-d24": (768, 350, 8e-5, 0.01),
    "imagenet256/var-d30": (1024, 350, 8e-5, 0.01),
    "imagenet512/var-d36": (768, 350, 8e-5, 0.01),
    "imagenet256/flexvar-d16": (768, 180, 1e-4, 0.1),
    "imagenet256/flexvar-d20": (768, 250, 1e-4, 0.1),
    "imagenet256/flexvar-d24": (768, 350, 8e-5, 0.01),
    "imagenet256/flexvar-mamba-d16": (768, 40, 1e-4, 0.1),  # the code's recipe for as long as the paper's table 5
    "imagenet256/flexvar-mamba-d20": (768, 40, 1e-4, 0.1),
}


def listed(path: Path) -> tuple[str, int]:
    """Parameters and GPUs, as the table has them."""
    count, gpus = re.search(rf"`{path.name}` \| ([\d,]+) \|.*\| (\d+) \| [^|]+\|\n", TABLE).groups()
    return count, int(gpus)


@pytest.mark.parametrize("name", CODE_RECIPES)
def test_recipes_of_codes_follow_from_batch_and_epochs(name):
    path = ROOT / f"configs/{name}.yaml"
    batch, epochs, base, last = CODE_RECIPES[name]
    config = yaml.safe_load(path.read_text())
    trainer, optimizer, data = config["trainer"], config["model"]["init_args"]["optimizer"], config["data"]["init_args"]
    count, gpus = listed(path)
    assert f" {count} " in path.read_text().splitlines()[0]
    assert trainer["devices"] * trainer["num_nodes"] == gpus and gpus * data["batch_size"] == batch
    assert optimizer["lr"] == pytest.approx(base * batch / 256)
    assert optimizer["final_lr"] == pytest.approx(last * optimizer["lr"])
    assert optimizer["total_steps"] == trainer["max_steps"] == round(epochs * 1_281_167 / batch)
    assert optimizer["warmup_steps"] == round(epochs / 50 * 1_281_167 / batch)
    assert optimizer["constant_steps"] == round(0.05 * (optimizer["total_steps"] - optimizer["warmup_steps"]))


@pytest.mark.parametrize("path", IMAGENET_FLOWAR, ids=lambda path: path.stem)
def test_table_and_file_agree(path):
    count, gpus = listed(path)
    assert f"{count} " in path.read_text().splitlines()[0]
    config = yaml.safe_load(path.read_text())
    trainer, optimizer = config["trainer"], config["model"]["init_args"]["optimizer"]
    assert trainer["devices"] * trainer["num_nodes"] == gpus
    batch = prod([gpus, config["data"]["init_args"]["batch_size"], trainer["accumulate_grad_batches"]])
    assert batch == 2048
    assert optimizer["lr"] == pytest.approx(5e-5 * batch / 256)
    assert optimizer["total_steps"] == trainer["max_steps"] == round(400 * 1_281_167 / batch)
    assert optimizer["warmup_steps"] == round(100 * 1_281_167 / batch)
