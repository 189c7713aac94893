"""The house keeps its rooms apart: docs/design.md says what may know of what."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.glob("scalear/**/*.py"))}
METHOD = "scalear/(models/.*|scales|schedules|draws|flow|guidance|token_sampling|pyramid)"


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
