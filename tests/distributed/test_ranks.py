"""What the processes of a run agree on before a Trainer connects them."""

import os
from multiprocessing import Queue, get_context

import pytest
from process_fixtures import Forked
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from scalear.distributed.ranks import text_of_rank_zero


@pytest.mark.integration
def test_processes_of_a_launcher_share_the_choice_of_rank_0():
    """As torchrun starts them, each with a choice of its own."""
    output = Forked(_launch).finish()  # for the launcher handles signals of its process
    assert "chosen ['a0b0', 'a0b0']" in output, output


def _launch() -> None:
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "rdzv_configs": {"is_host": True}}
    config = LaunchConfig(1, 1, nproc_per_node=2, start_method="fork", run_id="here", max_restarts=0, **place)
    print("chosen", list(elastic_launch(config, _choose_twice)().values()))


def _choose_twice() -> str:
    rank = os.environ["RANK"]
    return text_of_rank_zero(lambda: f"a{rank}") + text_of_rank_zero(lambda: f"b{rank}")


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
