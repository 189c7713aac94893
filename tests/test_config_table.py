"""docs/configs.md against the files it lists, and the batch that all FlowAR recipes share."""

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


@pytest.mark.parametrize("path", IMAGENET_FLOWAR, ids=lambda path: path.stem)
def test_table_and_file_agree(path):
    count, gpus = re.search(rf"`{path.name}` \| ([\d,]+) \|.*\| (\d+) \| [^|]+\|\n", TABLE).groups()
    assert f"{count} " in path.read_text().splitlines()[0]
    config = yaml.safe_load(path.read_text())
    trainer, optimizer = config["trainer"], config["model"]["init_args"]["optimizer"]
    assert trainer["devices"] * trainer["num_nodes"] == int(gpus)
    batch = prod([int(gpus), config["data"]["init_args"]["batch_size"], trainer["accumulate_grad_batches"]])
    assert batch == 2048
    assert optimizer["lr"] == pytest.approx(5e-5 * batch / 256)
    assert optimizer["total_steps"] == trainer["max_steps"] == round(400 * 1_281_167 / batch)
    assert optimizer["warmup_steps"] == round(100 * 1_281_167 / batch)
