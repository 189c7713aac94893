"""Commands in processes of their own, as a shell or a launcher of ranks starts them.

They are forked from a server that has imported everything once: an import takes longer than most of what they do.
"""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkstemp

import torch

from scalear.__main__ import main

_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(["scalear.commands.run"])


class Command:
    """`scalear ARGS`, begun.

    Args:
        args: Of the command.
        environment: Variables that it has beside those of this process.
    """

    def __init__(self, args: Sequence[str | Path], environment: dict[str, str]) -> None:
        handle, self._output = mkstemp()
        os.close(handle)
        self._process = _SERVER.Process(target=_carry_out, args=([str(arg) for arg in args], environment, self._output))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def finish(self) -> str:
        """Wait for it and return what it printed; none of its own processes outlives it."""
        self._process.join(timeout=300)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        return Path(self._output).read_text()


def start(*args: str | Path) -> Command:
    """`scalear ARGS` in a process of its own."""
    return Command(args, {})


def start_two_ranks(*args: str | Path) -> list[Command]:
    """`scalear ARGS` on two ranks of one machine, with what torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
    shared |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    args = (*args, "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu")
    return [Command(args, shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]


def run_on_two_ranks(*args: str | Path) -> None:
    """The same, to its end, which must be a good one."""
    for rank in start_two_ranks(*args):
        output = rank.finish()
        assert rank.returncode == 0, output


def _carry_out(args: list[str], environment: dict[str, str], output: str) -> None:
    os.setsid()
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)  # as for those of this process, with which it is compared
    sys.exit(main(args))
