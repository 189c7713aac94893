"""Parts of a model as JSON: `{"class_path": ..., "init_args": ...}`, the form they have in a config, and back."""

import dataclasses
import importlib
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

T = TypeVar("T")
Part = dict[str, Any]
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def build(base: type[T], part: Part) -> T:
    """Make the object that `part` describes, by the rules of a config.

    Args:
        base: What it must be an instance of.
        part: `class_path` and `init_args`; the arguments may hold further parts.

    Raises:
        ValueError: `part` is no such thing; a class is unknown, of another kind or of a module that is not imported; an
            argument is wrong.
    """
    return _make(_find(base, part), part)


def build_settings(part: Part) -> Any:
    """As `build`, for a dataclass such as a solver, whose kind only those who use it know."""
    found = _find(object, part)
    if not dataclasses.is_dataclass(found):
        raise ValueError(f"{part['class_path']} is not a dataclass of settings")
    return _make(found, part)


def build_class(base: type[T], part: Part) -> Callable[..., T]:
    """As `build`, of an object whose first arguments are still to come: a function of these."""
    return partial(_find(base, part), **_arguments(part))


def with_arguments(part: Part, **arguments: Any) -> Part:
    """The same part with these arguments in place of its own.

    Raises:
        ValueError: `part` is no such thing.
    """
    _check_form(part)
    return part | {"init_args": part.get("init_args", {}) | arguments}


def settings_part(settings: object) -> Part:
    """The part that `build_settings` makes this dataclass instance from."""
    return {"class_path": class_path(type(settings)), "init_args": dataclasses.asdict(settings)}


def class_path(kind: type) -> str:
    """Where Python finds a class, as configs name it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_form(part: object) -> None:
    """Files that hold parts may be damaged, or written by hand."""
    path, arguments = (part.get("class_path"), part.get("init_args", {})) if isinstance(part, dict) else (None, None)
    if not (isinstance(path, str) and isinstance(arguments, dict)):
        raise ValueError(f"a part of a model has a class_path and init_args, and this is {part!r:.80}")


def _find(base: type[T], part: Part) -> type[T]:
    _check_form(part)
    path = part["class_path"]
    module, _, name = path.rpartition(".")
    _check_trusted(path)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no class {path} in this version of scalear: {error}") from error
    if not isinstance(found, type):
        raise ValueError(f"{path} is not a class")
    if not issubclass(found, base):
        raise ValueError(f"{path} is not a {base.__name__}")
    return found


def _arguments(part: Part) -> dict[str, Any]:
    arguments = part.get("init_args", {})
    for path in _import_paths(arguments):
        _check_trusted(path)
    return arguments


def _make(found: type[T], part: Part) -> T:
    parser, name = ArgumentParser(exit_on_error=False), found.__name__  # which stands in its messages
    parser.add_class_arguments(found, name)
    try:
        config = parser.parse_object({name: _arguments(part)})
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"cannot build {part['class_path']}: {error}") from error
    return parser.instantiate_classes(config)[name]


def _import_paths(value: object) -> Iterator[str]:
    """Every string inside that could name a class or a function."""
    if isinstance(value, str) and _DOTTED.fullmatch(value):
        yield value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _import_paths(entry)


def _check_trusted(path: str) -> None:
    """Let a downloaded config name nothing but scalear's parts and what is imported already, by whomever.

    Python's own modules, which always are, have no parts.
    """
    module = path.rpartition(".")[0]
    package = module.partition(".")[0]
    if package != "scalear" and (module not in sys.modules or package in sys.stdlib_module_names):
        raise ValueError(f"{path} is not a part of scalear: if you trust it, import {module} first")
