"""The rules of docs/design.md on what imports what, and on models."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_fixtures import ROOT

PACKAGE = ROOT / "scalear"
FILES = sorted(PACKAGE.rglob("*.py"))
_PAGE = (ROOT / "docs/design.md").read_text()
ROOMS = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\|(.*?)\|", _PAGE.split("## Rooms")[1], re.MULTILINE)[2:]]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms} | {"__main__": len(ROOMS)}
EXCEPTIONS = {("tokenizers/weights.py", "scalear.interop.class_paths"), ("commands/demo.py", "scalear.__main__")}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever that stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from [f"scalear.{alias.name}" for alias in node.names] if node.module == "scalear" else [node.module]


def test_every_room_is_described():
    assert {room(path) for path in FILES} - {"__init__"} == LEVELS.keys()


def test_imports_go_one_way():
    wrong = []
    for path in FILES:
        for module in imports(path):
            package, _, rest = module.partition(".")
            there = LEVELS.get(rest.split(".")[0], 0) if package == "scalear" else 0
            if there > LEVELS.get(room(path), 0) and (str(path.relative_to(PACKAGE)), module) not in EXCEPTIONS:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}, which stands below it")
    assert wrong == []


def test_what_is_imported_exists():
    named = {module for path in FILES for module in imports(path) if module.startswith("scalear.")}
    places = {module: PACKAGE.joinpath(*module.split(".")[1:]) for module in named - {"scalear.__version__"}}
    assert [name for name, at in places.items() if not (at.is_dir() or at.with_suffix(".py").is_file())] == []


def test_lightning_is_imported_where_it_belongs():
    rooms = {room(path) for path in FILES for module in imports(path) if module.split(".")[0] == "lightning"}
    assert rooms <= {"data", "training", "distributed", "commands"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").rglob("*.py")), ids=lambda path: path.name)
def test_models_are_plain(path):
    words = r"autograd|saved_tensors|is_cuda|cuda\.|get_device|\bmps\b"
    assert re.findall(words, path.read_text()) == []


def test_the_reading_order_of_the_readme_is_one():
    text = (ROOT / "README.md").read_text().split("Read the code in this order")[1].split("\n## ")[0]
    order = re.findall(r"\]\(scalear/([\w/]+)\.py\)", text)
    method = [name for name in order if "/" not in name or name.startswith("models/")]
    every = {str(path.relative_to(PACKAGE / "models").with_suffix("")) for path in (PACKAGE / "models").glob("*.py")}
    assert {name.removeprefix("models/") for name in method if "/" in name} >= every - {"__init__", "weights"}
    for place, name in enumerate(method):
        read = {f"scalear.{earlier.replace('/', '.')}" for earlier in method[:place]}
        machinery = tuple(f"scalear.{room}" for room in ("hardware", "fast", "tokenizers"))
        needed = {module for module in imports(PACKAGE / f"{name}.py") if module.startswith("scalear.")}
        assert {module for module in needed - read if not module.startswith(machinery)} == set(), name
