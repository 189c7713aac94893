"""What the suite asks of its own tests."""

import subprocess
import sys
from multiprocessing import get_context

import pytest
from cli_fixtures import ROOT


def test_a_test_without_the_marker_starts_no_process():
    with pytest.raises(pytest.fail.Exception, match="needs @pytest.mark.integration"):
        subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(pytest.fail.Exception, match="needs @pytest.mark.integration"):
        get_context("spawn").Process(target=print).start()


def test_what_needs_an_experiment_has_the_marker(request, packed):
    assert request.node.get_closest_marker("integration")


def test_continuous_integration_runs_lint_and_then_the_whole_suite():
    commands = (ROOT / ".ci/run").read_text().splitlines()
    assert commands[-2:] == ["make lint", "make test"]
