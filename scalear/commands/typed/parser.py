"""The parser of all commands: options, their types and their help come from signatures and docstrings.

Does not import PyTorch, so that commands which need none start at once.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import docstring_parser
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from scalear.commands.typed.mistakes import of_constructor

set_parsing_settings(docstring_parse_attribute_docstrings=True)  # help of dataclass fields
# jsonargparse reads the source of a class anew for every option that may hold one: half of the time of parsing.
docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)


class AsTyped:
    """Of a parser: options mean what people who type them mean.

    A `null` stays one, however deep its option lies: jsonargparse hands options down to the classes they belong to as
    text, in which null has become `None`. A switch (an option that may be true) may be typed without a value; a list of
    texts takes all that follows up to the next option. What is typed wins over the files of `-c`, also before and
    between them. `~` begins a path in the home folder, typed or in YAML.
    """

    def parse_args(self, args: Sequence[str], **kwargs: object) -> Namespace:
        for action in self._actions:
            if action.option_strings and _type_of(action) is bool:
                action.metavar = "[{true,false}]"  # for the help
        return _at_home(super().parse_args(list(self._spelled_out(files_first(args))), **kwargs))

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Namespace:
        """As jsonargparse; what a constructor says is about settings, for nothing else has run."""
        try:
            return super().instantiate_classes(*args, **kwargs)
        except Exception as error:
            raise of_constructor(error) from error

    def _spelled_out(self, args: Sequence[str]) -> Iterator[str]:
        waiting = list(args)
        while waiting:
            arg = waiting.pop(0)
            flag, equals, value = arg.partition("=")
            if self._is_switch(arg):
                arg = f"{arg}={waiting.pop(0) if waiting and self._is_value(arg, waiting[0]) else 'true'}"
            elif self._is_list(flag) and not equals:
                count = next((place for place, text in enumerate(waiting) if text.startswith("-")), len(waiting))
                arg = f"{arg}={waiting[:count]}"
                del waiting[:count]
            elif self._is_list(flag) and not re.match(r"\[|null$", value):
                arg = f"{flag}={[value]}"
            yield re.sub(r"^(--[\w.]+=)None$", r"\1null", arg)

    def _is_switch(self, arg: str) -> bool:
        kind = _type_of(self._option_string_actions.get(arg))
        return bool in (kind, *get_args(kind))

    def _is_value(self, switch: str, following: str) -> bool:
        """Whether what follows a switch is its value; a switch that may be something else takes all but options."""
        if _type_of(self._option_string_actions[switch]) is bool:
            return following.lower() in ("true", "false")
        return not re.match(r"-\D", following)

    def _is_list(self, arg: str) -> bool:
        return _type_of(self._option_string_actions.get(arg)) == list[str] | None


class CommandParser(AsTyped, ArgumentParser):
    """Options of all commands but those that read the config of a run, which LightningCLI does."""

    def __init__(self, *args: Any, exit_on_error: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, exit_on_error=exit_on_error, **kwargs)

    def split(self, args: Sequence[str]) -> tuple[list[str], list[str]]:
        """Arguments of this parser, and all others, which the parser of a config reads."""
        own: list[str] = []
        others: list[str] = []
        waiting = list(self._spelled_out(args))
        while waiting:
            arg = waiting.pop(0)
            name, equals, _ = arg.partition("=")
            action = self._option_string_actions.get(name)
            if action is None:
                (others if others or arg.startswith("-") else own).append(arg)
            elif equals or action.nargs == 0 or not waiting:
                own.append(arg)
            else:
                own.append(f"{arg}={waiting.pop(0)}")
        return own, others


def files_first(args: Sequence[str]) -> list[str]:
    """The arguments with config files before all other options: jsonargparse lets each win over what stands before."""
    files, others = [], []
    waiting = list(args)
    while waiting:
        arg = waiting.pop(0)
        (files if _is_file_flag(arg) else others).append(arg)
        if _is_file_flag(arg) and "=" not in arg and waiting:
            files.append(waiting.pop(0))
    files = [re.sub(r"^(--config=|-c=|)(~.*)", lambda found: found[1] + os.path.expanduser(found[2]), f) for f in files]
    first = next((place for place, arg in enumerate(others) if arg.startswith("-")), len(others))
    return [*others[:first], *files, *others[first:]]


def config_files(args: Sequence[str]) -> list[str]:
    """The files of `-c`, in their order."""
    ordered = files_first(args)
    flags = [(arg, after) for arg, after in zip(ordered, [*ordered[1:], ""], strict=True) if _is_file_flag(arg)]
    return [arg.partition("=")[2] if "=" in arg else after for arg, after in flags]


def _is_file_flag(arg: str) -> bool:
    return bool(re.match(r"(-c|--config)(=|$)", arg))


def _at_home(value: Any) -> Any:
    """The same settings; texts that begin as a path in a home folder does are that path."""
    if isinstance(value, Namespace):
        for name, entry in vars(value).items():
            setattr(value, name, _at_home(entry))
    elif isinstance(value, dict):
        return {name: _at_home(entry) for name, entry in value.items()}
    elif isinstance(value, list):
        return [_at_home(entry) for entry in value]
    elif isinstance(value, str | Path) and re.match(r"~[\w.-]*(/|$)", str(value)):
        return type(value)(os.path.expanduser(value))
    return value


def _type_of(action: Any) -> Any:
    return getattr(action, "_typehint", None)


def function_parser(function: Callable, prog: str, as_positional: bool = False) -> CommandParser:
    """A parser of the arguments of a function, described by its docstring.

    Args:
        function: Its parameters become options.
        prog: The words before them, such as `scalear convert`.
        as_positional: Give those that have no default by their order alone.
    """
    parser = CommandParser(prog=prog, description=summary(function))
    parser.add_function_arguments(function, as_positional=as_positional)
    return parser


def summary(described: Any) -> str:
    """The first paragraph of a docstring."""
    return described.__doc__.split("\n\n")[0]


def add_arguments_file(parser: ArgumentParser) -> None:
    """`--config`: the options of a command from a file."""
    parser.add_argument("--config", action="config", help="YAML file with the arguments below.")
