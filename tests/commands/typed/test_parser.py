"""What the command line makes of what is typed: files of options, home folders, the order of words."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest
from cli_fixtures import run

from scalear.commands.typed.parser import CommandParser, add_arguments_file, config_files, files_first


@dataclass
class Paths:
    """Where things are."""

    one: str = "a"
    two: Path | None = None
    many: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)


def parse(*args: str) -> Paths:
    parser = CommandParser()
    add_arguments_file(parser)
    parser.add_class_arguments(Paths)
    options = parser.parse_args(list(args))
    return Paths(options.one, options.two, options.many, options.named)


@pytest.mark.parametrize(
    "args, ordered, files",
    [
        (["fit", "--a=1", "-c", "x", "--b", "2"], ["fit", "-c", "x", "--a=1", "--b", "2"], ["x"]),
        (["fit", "-c", "x", "--a=1", "--config=y"], ["fit", "-c", "x", "--config=y", "--a=1"], ["x", "y"]),
        (["edit", "refine", "--a", "1", "-c=x"], ["edit", "refine", "-c=x", "--a", "1"], ["x"]),
        (["--a", "1"], ["--a", "1"], []),
    ],
)
def test_files_come_before_what_is_typed(args, ordered, files):
    assert files_first(args) == ordered and config_files(args) == files


def test_what_is_typed_wins_wherever_it_stands(tmp_path):
    (tmp_path / "x.yaml").write_text("one: from the file\n")
    for args in (["--one=typed", f"--config={tmp_path}/x.yaml"], [f"--config={tmp_path}/x.yaml", "--one=typed"]):
        assert parse(*args).one == "typed"


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.yaml").write_text("two: ~/b\nmany: [~/c, d~, ~]\nnamed: {e: ~/f}\n".replace(" ~]", " '~']"))
    paths = parse("--config=~/x.yaml", "--one=~/a")
    assert paths.one == f"{tmp_path}/a" and paths.two == tmp_path / "b"
    assert paths.many == [f"{tmp_path}/c", "d~", str(tmp_path)] and paths.named == {"e": f"{tmp_path}/f"}
    assert parse("--one=~ not a path").one == "~ not a path"


def test_configs_of_runs_may_name_home_folders(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data.yaml").write_text("data: {init_args: {data_dir: ~/absent}}\n")
    assert run("fit", "-c", "configs/fashion/kl.yaml", "-c", "~/data.yaml") == 2
    assert f"{tmp_path}/absent" in capsys.readouterr().err


def test_the_order_of_words_is_told(capsys):
    assert run("-c", "x.yaml", "fit", "--trainer.max_steps", "3") == 2
    assert "the command comes first: scalear fit -c x.yaml --trainer.max_steps 3" in capsys.readouterr().err


def test_the_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"scalear {version('scalear')}\n"
