"""What the processes of a run agree on before a Trainer connects them."""

import os
import subprocess
import sys
from multiprocessing import Queue, get_context

import pytest

from scalear.distributed.ranks import text_of_rank_zero


@pytest.mark.integration
def test_processes_of_a_launcher_share_the_choice_of_rank_0():
    """As torchrun starts them, each with a choice of its own."""
    script = (
        "import os; from scalear.distributed.ranks import text_of_rank_zero as shared; rank = os.environ['RANK']; "
        "print('chosen', shared(lambda: 'a' + rank) + shared(lambda: 'b' + rank), flush=True)"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    output = subprocess.run([*command, "--no-python", sys.executable, "-c", script], capture_output=True, text=True)
    assert [line for line in output.stdout.splitlines() if "chosen" in line] == ["chosen a0b0"] * 2, output.stderr


def test_processes_that_lightning_starts_inherit_the_choice(monkeypatch):
    monkeypatch.delenv("SCALEAR_OF_RANK_ZERO", raising=False)
    assert text_of_rank_zero(lambda: "of the parent") == "of the parent"
    fork = get_context("fork")  # whose parent is this process
    answers = fork.Queue()
    for extra, expected in (({"LOCAL_RANK": "1"}, "of the parent"), ({}, "its own")):
        child = fork.Process(target=_choose, args=(extra, answers))
        child.start()
        assert answers.get(timeout=60) == expected
        child.join()


def _choose(environment: dict[str, str], answers: Queue) -> None:
    os.environ.update(environment)
    answers.put(text_of_rank_zero(lambda: "its own"))
