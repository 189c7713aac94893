"""Every command that the pages show is one that the command line takes."""

import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import NoReturn

import pytest
from cli_fixtures import ROOT, every_dataset_is_there
from test_pages import PAGES

from scalear.__main__ import _COMMANDS
from scalear.commands.benchmark import parse_setting
from scalear.commands.run import PartsOnly, ScalearCLI
from scalear.commands.typed.parser import AsTyped

pytestmark = pytest.mark.integration


class _ParsedError(Exception):
    """Ends a command once its options are read."""


def commands(text: str) -> list[list[str]]:
    """What follows `scalear` in blocks of code, also after a launcher."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    blocks = re.sub(r"\\\n *", "", blocks)
    blocks = re.sub(r" \$MODEL\b", " -c configs/fashion/flexvar.yaml", blocks)
    found = re.findall(r"^(?!#)(?:[^#\n]*[ /])?scalear +([a-z].*)$", blocks, re.MULTILINE)
    lines = [re.sub(r"\$\w+", "1", re.split(r"[>|;]|&&| #| {3}", line)[0]) for line in found]  # without remarks
    words = [_with_files_that_exist(shlex.split(line)) for line in lines]
    return [line for line in words if line and not {"...", "COMMAND"} & set(line)]


def _with_files_that_exist(line: list[str]) -> list[str]:
    """Without the configs that a page tells its reader to write."""
    made = [place for place in range(len(line) - 1) if line[place] == "-c" and not (ROOT / line[place + 1]).exists()]
    return [word for place, word in enumerate(line) if not {place, place - 1} & set(made)]


SHOWN = [
    pytest.param(line, id=f"{page.name}: {' '.join(line)[:60]}")
    for page in PAGES
    for line in {tuple(line): line for line in commands(page.read_text())}.values()
]


def test_commands_are_found():
    names = {param.values[0][0] for param in SHOWN}
    assert names >= {"fit", "test", "predict", "evaluate", "stats", "export", "convert", "data", "edit"}
    assert len(SHOWN) > 30


@pytest.fixture(autouse=True)
def own_classes(monkeypatch, tmp_path) -> Iterator[None]:
    """The page that tells how to write parts names them."""
    (tmp_path / "array_file.py").write_text(
        "from scalear.data.sources import FashionMNIST\n\n\nclass ArrayFile(FashionMNIST):\n"
        "    def __init__(self, path: str, num_val: int = 0) -> None: ...\n"
    )
    (tmp_path / "mean_distance.py").write_text(
        "from scalear.evaluation.kid import KernelDistance\n\n\nclass MeanDistance(KernelDistance): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ("array_file", "mean_distance")
    for name in names:  # not those of other tests
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in names:  # nor theirs these
        sys.modules.pop(name, None)


@pytest.mark.parametrize("line", SHOWN)
def test_its_options_exist(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = line[0]
    if name in ("fit", "validate", "test", "predict") and "-c" not in line:
        pytest.skip("its only config is one that a run leaves")
    parse = AsTyped.parse_args

    def stop(*args) -> NoReturn:
        raise _ParsedError

    def parse_and_stop(*args, **kwargs) -> NoReturn:
        parse(*args, **kwargs)
        stop()

    monkeypatch.setattr(ScalearCLI, "before_instantiate_classes", stop)
    monkeypatch.setattr(PartsOnly, "instantiate_classes", stop)
    if name in ("app", "board", "data", "convert", "demo", "evaluate", "stats", "try"):
        monkeypatch.setattr(AsTyped, "parse_args", parse_and_stop)
    with pytest.raises(_ParsedError), every_dataset_is_there():
        if name == "benchmark" and line[1] != "solver":
            PartsOnly(parse_setting(line[1:]).config_args)
        else:
            import_module(f"scalear.commands.{_COMMANDS[name][0]}").run(list(line))
