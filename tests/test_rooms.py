"""The house keeps its rooms apart: docs/design.md says what may know of what."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.glob("scalear/**/*.py"))}
DESIGN = (ROOT / "docs/design.md").read_text().split("## Rooms")[1].split("\n## ")[0]
# Rooms as the page lists them, each line standing on those above.
ROOMS = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`.*?) \|", DESIGN, re.MULTILINE)]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
METHOD = "scalear/(models/.*|scales|schedules|draws|flow|diffusion|guidance|token_sampling|pyramid)"


def imports(source: str) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(
    "module, rooms",
    [
        ("yaml", "scalear/yaml_files"),
        ("lightning", "scalear/(data|training|distributed|commands)/"),
        ("scalear.commands", "scalear/(commands/|__main__)"),
        ("scalear.fast", "scalear/(fast/|image_model|training/|benchmark/|commands/|__main__)"),
        ("scalear.training", "scalear/(training|commands|benchmark)/"),
        ("scalear.benchmark", "scalear/(benchmark|commands)/"),
    ],
)
def test_who_may_import_what(module, rooms):
    users = {
        path for path, source in SOURCES.items() for name in imports(source) if f"{name}.".startswith(f"{module}.")
    }
    assert users and [path for path in users if not re.match(rooms, path)] == []


def test_the_method_is_plain():
    """Nothing in it asks for a device or has an algorithm of its own for the backward pass."""
    for path, source in SOURCES.items():
        if re.fullmatch(f"{METHOD}.py", path):
            assert not re.search(r"device\.type|is_cuda|autograd\.Function|saved_tensors_hooks", source), path


def test_every_class_has_a_name_of_its_own():
    names = Counter(
        node.name for source in SOURCES.values() for node in ast.parse(source).body if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


def room_of(module: str) -> str:
    return module.split(".")[1]


def modules(path: str) -> set[str]:
    """Modules of scalear that a file imports."""
    names = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in SOURCES}
    return (imports(SOURCES[path]) & names) - {"scalear"}


def test_the_page_lists_every_room_and_imports_go_one_way():
    assert {path.split("/")[1].removesuffix(".py") for path in SOURCES} - {"__init__", "__main__"} == LEVELS.keys()
    wrong = [
        (path, module)
        for path in SOURCES
        if (room := path.split("/")[1].removesuffix(".py")) in LEVELS
        for module in modules(path) - {"scalear.__main__"}
        if LEVELS[room_of(module)] > LEVELS[room]
    ]
    assert wrong == []


def test_what_is_imported_exists():
    every = {path.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in SOURCES}
    for path, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("scalear"):
                assert node.module in every or Path(ROOT, *node.module.split(".")).is_dir(), f"{path}: {node.module}"


def test_the_reading_order_of_the_readme_is_one():
    """Each file of the method stands after those that it imports."""
    text = (ROOT / "README.md").read_text().split("Read the code in this order")[1].split("\n## ")[0]
    order = [path for path in re.findall(r"\]\((scalear/[\w/]+\.py)\)", text) if re.fullmatch(f"{METHOD}.py", path)]
    method = {path for path in SOURCES if re.fullmatch(f"{METHOD}.py", path) and SOURCES[path]}
    assert set(order) == method - {"scalear/models/weights.py"}
    for place, path in enumerate(order):
        needed = {f"{module.replace('.', '/')}.py" for module in modules(path)} & method
        assert needed <= set(order[:place]), path


def test_tests_mirror_the_rooms():
    folders = {path.parent.relative_to(ROOT / "tests") for path in ROOT.glob("tests/**/test_*.py")} - {Path("configs")}
    assert [str(folder) for folder in folders if not Path(ROOT, "scalear", folder).is_dir()] == []
    split = {path.parent for path in ROOT.glob("scalear/*/*/__init__.py")}  # rooms in which others lie
    assert {path.relative_to(ROOT / "scalear") for path in split} <= folders
