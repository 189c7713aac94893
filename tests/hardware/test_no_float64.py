"""Training, sampling, editing and measuring on a device that has no float64, such as Apple's GPUs."""

import sys
from pathlib import Path

import pytest
from process_fixtures import Forked, finish_well


@pytest.mark.integration
def test_all_families_do_without_float64_on_their_device():
    # In a process of its own: torch knows one device of this kind, and would take it for the accelerator of all tests.
    finish_well(Forked(_run_tests, Path(__file__).parent / "on_mpslike.py"))


def _run_tests(file: Path) -> None:
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", str(file)]))
