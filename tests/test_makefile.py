"""What `make setup` gives pip, and what it says to a .venv that was made otherwise."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.skipif(shutil.which("make") is None, reason="needs make")]

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# In place of Python: `-m venv FOLDER` makes a pip that only writes down its arguments.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
printf '#!/bin/sh\\nprintf "%%s\\\\t" "$@" >> pip.txt; echo >> pip.txt\\n' > "$3/bin/pip"
chmod +x "$3/bin/pip"
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The files that `make setup` reads."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(checkout: Path, *args: str) -> subprocess.CompletedProcess:
    command = ["make", "-C", str(checkout), "PYTHON=./python", *args]
    outside = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}  # of the make that runs these tests
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def pip_was_given(checkout: Path) -> list[list[str]]:
    log = checkout / "pip.txt"
    given = [line.strip("\t").split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return given


def install_torch(checkout: Path, version: str, cuda: str | None) -> None:
    """The file of PyTorch that says what it was built for."""
    folder = checkout / f".venv/lib/python3.{sys.version_info.minor}/site-packages/torch"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"__version__ = {version!r}", "debug = False", f"cuda: Optional[str] = {cuda!r}")
    (folder / "version.py").write_text("\n".join(lines) + "\n")


def test_setup_takes_everything_from_the_default_index(checkout):
    assert make(checkout, "setup").returncode == 0
    assert pip_was_given(checkout) == [["install", "-e", ".[dev]"]]


def test_setup_without_cuda_takes_pytorch_alone_from_the_index_of_cpu_wheels(checkout):
    """First, and as new as pyproject.toml wants it: else the second command would replace it by a CUDA build."""
    wanted = re.findall(r'^ +"(torch(?:vision)?[<>=~!][^"]*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(wanted) == 2
    assert make(checkout, "setup", "TORCH=cpu").returncode == 0
    assert pip_was_given(checkout) == [["install", "--index-url", CPU_WHEELS, *wanted], ["install", "-e", ".[dev]"]]


def test_what_was_made_without_cuda_stays_so_when_requirements_change(checkout):
    make(checkout, "setup", "TORCH=cpu")
    install_torch(checkout, "2.14.1+cpu", None)
    first = pip_was_given(checkout)
    assert make(checkout, "setup").returncode == 0
    assert pip_was_given(checkout) == []
    (checkout / ".venv/.ready").unlink()  # as if pyproject.toml were newer
    assert make(checkout, "setup").returncode == 0
    assert pip_was_given(checkout) == first


@pytest.mark.parametrize(
    "version, cuda, made, wanted", [("2.14.1+cu130", "13.0", "pypi", "cpu"), ("2.14.1+cpu", None, "cpu", "pypi")]
)
def test_another_build_than_the_one_that_is_there_needs_a_new_venv(checkout, version, cuda, made, wanted):
    install_torch(checkout, version, cuda)
    done = make(checkout, "setup", f"TORCH={wanted}")
    assert done.returncode and pip_was_given(checkout) == []
    assert f"made with TORCH={made}; for TORCH={wanted} remove it first: rm -rf .venv" in done.stderr


def test_builds_have_names(checkout):
    done = make(checkout, "setup", "TORCH=gpu")
    assert done.returncode and "TORCH is cpu or pypi, not gpu" in done.stderr


def test_no_target_deletes_what_runs_left(checkout):
    """`clean` removes caches."""
    text = (checkout / "Makefile").read_text()
    removed = re.findall(r"^\t(?:@|-)?rm (.*)", text, re.MULTILINE)
    assert removed == ["-rf .pytest_cache .ruff_cache build *.egg-info"]


def test_pictures_to_try_are_named(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.ready").touch()
    done = make(checkout, "try", "-n")
    assert done.returncode and "name the folder: make try PICTURES=~/pictures" in done.stderr
    done = make(checkout, "try", "-n", "PICTURES=my pictures", "ARGS=--minutes 10")
    assert 'scalear try "my pictures" --minutes 10\n' in done.stdout
