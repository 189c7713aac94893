"""The config of a run and what is typed beside it: mistakes that jsonargparse would not see, or not tell of."""

import inspect
import pydoc
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from scalear.commands.typed.parser import config_files
from scalear.training.optim import ALTERNATIVES
from scalear.yaml_files import read_yaml


def parse_run(parser: ArgumentParser, args: Sequence[str]) -> Namespace:
    """Read a command line with the config of a run.

    Raises:
        ValueError: The config is an overlay without a config under it, a setting cannot be null, or two are typed for
            one thing.
    """
    _refuse_overlays_alone(args)
    # What is left out is found before anything is missed.
    config = parser.parse_object(parser.parse_args([*args, *_replaced(args)]))
    _refuse_nulls(config)
    return config


def _replaced(args: Sequence[str]) -> Iterator[str]:
    """Options that take back what a config says in another way than what is typed of its optimizer."""
    typed: dict[str, str] = {}
    for place, arg in enumerate(args):
        if found := re.fullmatch(r"(--[\w.]*optimizer\.\w+)(?:=(.*))?", arg):
            typed[found[1]] = " ".join(args[place + 1 : place + 2]) if found[2] is None else found[2]
    given = {option for option, value in typed.items() if value != "null"}
    for option in given:
        prefix, _, name = option.rpartition(".")
        for names in (names for names in ALTERNATIVES if name in names):
            before = [f"{prefix}.{other}" for other in names[: names.index(name)]]
            if both := given.intersection(before):
                raise ValueError(f"{both.pop()} and {option} are two ways to say one thing: type one of them")
            yield from (f"{other}=null" for other in before)


def _refuse_overlays_alone(args: Sequence[str]) -> None:
    """An overlay changes what stands under it, and alone would be taken for settings of Lightning's base classes."""
    try:
        configs = {name: read_yaml(name) for name in config_files(args)}
    except ValueError:
        return  # the parser says what is wrong with it
    for part in ("model", "data"):
        if any(re.match(rf"--{part}(\.class_path)?(=|$)", arg) for arg in args):
            continue
        for name, content in configs.items():
            given = content.get(part) if isinstance(content, dict) else None
            if isinstance(given, str) or (isinstance(given, dict) and "class_path" in given):
                break
            if given is not None or name == list(configs)[-1]:
                raise ValueError(
                    f"{name} is an overlay, for it names no class_path of its {part}: the config that it changes comes "
                    f"before it, as in -c configs/fashion/flowar.yaml -c {name}"
                )


def _refuse_nulls(config: Any, key: str = "") -> None:
    """Refuse null for what a class takes no null for; jsonargparse would fail, or the class, and not say at what."""
    if isinstance(config, list):
        for entry in config:
            _refuse_nulls(entry, key)
    if not isinstance(config, Namespace):
        return
    settings = vars(config)
    if isinstance(path := settings.get("class_path"), str):
        settings = vars(settings.get("init_args") or Namespace())
        for name, parameter in inspect.signature(pydoc.locate(path)).parameters.items():
            if settings.get(name, ...) is None and not _takes_null(parameter):
                instead = "write {} for its defaults" if is_dataclass(parameter.annotation) else "leave it out"
                raise ValueError(f"{key}.{name} cannot be null: {instead}")
    for name, value in settings.items():
        _refuse_nulls(value, f"{key}.{name}".lstrip("."))


def _takes_null(parameter: inspect.Parameter) -> bool:
    kind = parameter.annotation
    unknown = kind in (inspect.Parameter.empty, Any) or isinstance(kind, str)
    return unknown or parameter.default is None or type(None) in get_args(kind)
