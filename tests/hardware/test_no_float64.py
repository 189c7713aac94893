"""Training, sampling, editing and measuring on a device that has no float64, such as Apple's GPUs."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.integration
def test_all_families_do_without_float64_on_their_device():
    # In a process of its own: torch knows one device of this kind, and would take it for the accelerator of all tests.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "on_mpslike.py"]
    result = subprocess.run(command, cwd=TESTS.parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
