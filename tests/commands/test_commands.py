"""The parser that all commands share, and how a command is found."""

import dataclasses
import subprocess
import sys

import pytest
from cli_fixtures import run

from scalear.__main__ import _COMMANDS
from scalear.commands.typed.parser import CommandParser, function_parser


@dataclasses.dataclass
class Part:
    """A part."""

    name: str | None = "a"
    """What it is called."""


def work(
    source: str,
    part: Part | None = None,
    many: list[str] | None = None,
    fast: bool = False,
    size: int = 1,
    runs: int | bool = False,
) -> None:
    """Do it.

    More words.

    Args:
        source: Where from.
        part: A part of it.
        many: Several names.
        fast: Do less.
        size: How much.
        runs: Some, or one.
    """


@pytest.fixture
def parser() -> CommandParser:
    return function_parser(work, "scalear work", as_positional=True)


@pytest.mark.parametrize(
    ("typed", "fast"),
    [
        ([], False),
        (["--fast"], True),
        (["--fast=true"], True),
        (["--fast", "true"], True),
        (["--fast", "false"], False),
    ],
)
def test_a_switch_may_be_typed_without_its_value_wherever_it_stands(parser, typed, fast):
    assert parser.parse_args([*typed, "here"]).fast is fast
    options = parser.parse_args(["here", *typed])
    assert (options.source, options.fast) == ("here", fast)
    assert parser.parse_args(["here", *typed, "--size=3"]).size == 3


@pytest.mark.parametrize(
    ("typed", "runs"),
    [
        (["--runs"], True),
        (["--runs=3"], 3),
        (["--runs", "3"], 3),
        (["--runs", "-3"], -3),
        (["--runs", "False"], False),
        (["--runs", "--fast"], True),
        (["--runs", "--size=2"], True),
    ],
)
def test_a_switch_that_may_be_something_else_takes_all_but_options(parser, typed, runs):
    given = parser.parse_args(["here", *typed]).runs
    assert (given, type(given)) == (runs, type(runs))


def test_help_is_taken_from_the_signature_and_the_docstring(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith("usage: scalear work [")
    assert "Do it." in text and "More words" not in text and "--fast [{true,false}]" in text
    for part in ("source", "Where from. (required, type: str)", "How much. (type: int, default: 1)"):
        assert part in text


def test_options_of_a_command_are_told_from_those_of_a_config(parser):
    typed = ["here", "--size", "2", "--model.x", "3", "--fast", "-c", "a.yaml", "--many", "b", "c:d", "--size=4", "e"]
    own, others = parser.split(typed)
    assert others == ["--model.x", "3", "-c", "a.yaml", "e"]
    options = parser.parse_args(own)
    assert (options.source, options.size, options.fast, options.many) == ("here", 4, True, ["b", "c:d"])
    assert parser.split(["--help"])[0] == ["--help"]
    own, others = parser.split(["--many", "-1", "--size"])
    assert (own, others) == (["--many=[]", "--size"], ["-1"])


def test_null_can_be_typed(parser):
    assert parser.parse_args(["here", "--part.name=null"]).part.name is None
    assert parser.parse_args(["here", "--part=null"]).part is None


def test_a_wrong_value_is_an_error_and_not_the_end_of_the_process(parser, capsys):
    with pytest.raises(Exception, match="size"):
        parser.parse_args(["here", "--size=x"])
    assert run("convert", "a.pth") == 2
    assert "these arguments are missing: output\nscalear convert --help lists the options\n" in capsys.readouterr().err
    assert run("convert", "a.pth", "b.safetensors", "--family=none") == 2
    assert "family must be flowar, flexvar, var" in capsys.readouterr().err
    assert run("demo", "--pictures=maybe") == 2
    assert "pictures must be true or false, got maybe" in capsys.readouterr().err
    assert run("benchmark") == 2
    assert "these arguments are missing: job\n" in capsys.readouterr().err
    assert run("benchmark", "paint") == 2
    assert "train" in capsys.readouterr().err
    assert run("benchmark", "sample", "--batch=0") == 2
    assert "--batch and --repeats must be at least 1 and --warmup at least 0, got 0, 3 and 1" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert run() == 0
    assert capsys.readouterr().out == text
    assert all(f"\n  {name:<11}{what}\n" in text for name, (_, what) in _COMMANDS.items())


@pytest.mark.integration
@pytest.mark.parametrize("args", [["--help"], ["data", "--help"], ["data", "pack", "--help"], ["nothing"]], ids=str)
def test_what_needs_no_torch_does_not_wait_for_it(args):
    script = f"""
import sys
from scalear.__main__ import main
try:
    main({args!r})
finally:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.integration
def test_a_command_does_not_wait_for_another():
    script = """
import sys
import scalear.commands.convert
assert not sys.modules.keys() & {f"scalear.commands.{other}" for other in ("run", "data", "benchmark")}
import scalear.commands.edit
assert "scalear.commands.benchmark" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
