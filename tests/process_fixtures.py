"""Commands and functions in processes of their own, as a shell or a launcher of ranks starts them.

They are forked from a server that has imported everything once: an import takes longer than most of what they do.
"""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkstemp
from typing import Any, NoReturn

import torch

from scalear.__main__ import main

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["scalear.commands.run"])


class Forked:
    """A function in a process of its own, begun.

    Args:
        function: Of a module.
        args: Its arguments.
        environment: Variables that it has beside those of this process.
    """

    def __init__(self, function: Callable[..., None], *args: Any, environment: dict[str, str] | None = None) -> None:
        handle, self._output = mkstemp()
        os.close(handle)
        carried = function, args, environment or {}, self._output
        self._process = SERVER.Process(target=_carry_out, args=carried)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def finish(self) -> str:
        """Wait for it and return what it printed; none of its own processes outlives it."""
        self._process.join(timeout=900)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        return Path(self._output).read_text()


def start(*args: str | Path) -> Forked:
    """`scalear ARGS` in a process of its own."""
    return Forked(_scalear, *args)


def start_two_ranks(*args: str | Path) -> list[Forked]:
    """`scalear ARGS` on two ranks of one machine."""
    return _two_ranks(_scalear, *args, "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu")


def run_on_two_ranks(*args: str | Path) -> None:
    """The same, to its end, which must be a good one."""
    finish_well(*start_two_ranks(*args))


def call_on_two_ranks(function: Callable[..., None], *args: Any) -> None:
    """A function on two ranks of one machine, to its end, which must be a good one."""
    finish_well(*_two_ranks(function, *args))


def finish_well(*processes: Forked) -> None:
    """Wait for all of them, none of which may fail."""
    for process in processes:
        output = process.finish()
        assert process.returncode == 0, output


def _two_ranks(function: Callable[..., None], *args: Any) -> list[Forked]:
    """With what torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
    shared |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    return [Forked(function, *args, environment=shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]


def _scalear(*args: str | Path) -> NoReturn:
    sys.exit(main([str(arg) for arg in args]))


def _carry_out(function: Callable[..., None], args: Sequence[Any], environment: dict[str, str], output: str) -> None:
    os.setsid()
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells ignore in what they start in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    torch.set_num_threads(1)  # as for those of this process, with which it is compared
    function(*args)
