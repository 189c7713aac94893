"""A process pool that ends with its parent, on an error, and on Ctrl-C."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_stop: Event | None = None  # set in workers only


def run_parallel(function: Callable[[Task], Result], tasks: Sequence[Task], num_workers: int) -> Iterator[Result]:
    """Yield `function(task)` for all tasks, in the order in which they finish.

    Close the iterator (`contextlib.closing`) when leaving early: tasks under way then stop at their next `check_stop`.

    Args:
        function: A module-level function. It should call `check_stop` now and then.
        tasks: Picklable.
        num_workers: Processes; 0 works in this one, in order.

    Raises:
        RuntimeError: A worker died.
    """
    if num_workers == 0:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has threads (torch) may hang
    stop = context.Event()
    size = max(1, min(num_workers, len(tasks)))
    executor = ProcessPoolExecutor(size, context, initializer=_start_worker, initargs=(stop,))
    try:
        for future in as_completed([executor.submit(function, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {size} worker processes died, most likely for want of memory; "
            "run the same command again with a smaller --num_workers"
        ) from error
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def check_stop() -> None:
    """Leave a task that nobody waits for any more.

    Raises:
        CancelledError: The parent has given up.
    """
    if _stop is not None and _stop.is_set():
        raise CancelledError


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what to do
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A killed parent can not end its workers, which would then wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
