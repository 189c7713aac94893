"""`scalear study`: the experiments of the papers' tables, in pieces that go on where they were stopped."""

import _thread
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scalear.commands.staged.stages import CommandError, run_command
from scalear.commands.studying.configs import StudyConfigs, typed
from scalear.commands.studying.cost import measure_costs
from scalear.commands.studying.rows import AtWorkError, StudyRuns, alone_in
from scalear.commands.typed.parser import function_parser
from scalear.data.index import INDEX_NAME
from scalear.idle_settings import refuse_idle
from scalear.study.page import write_page
from scalear.study.plan import Study, StudyRow


def study(
    name: str | None = None,
    minutes: float | None = None,
    report: bool = False,
    cost: bool = False,
    config: str = "configs/study.yaml",
    tables: str = "docs/study/tables.yaml",
    results_dir: str = "docs/study",
    runs_dir: str = "runs/study",
    page: str = "docs/study.md",
) -> None:
    """Train, sample and measure what the papers compare, at a laptop's size.

    What has a result already, of the same config, data and method, is not done again. Interrupt it anywhere: the same
    command goes on from there. Several may run at once, one for each CPU core: each takes rows that no other is at.

    Args:
        name: Of one row, such as ablations/flowar-adaln, or of a group; with what it needs. Default: all.
        minutes: Stop after so many.
        report: Only write the page of the results that are there, with its pictures.
        cost: Only time a training step and sampling of every row here, into cost.json of the results.
        config: What is run.
        tables: What it is for, and what the papers have.
        results_dir: Gets a JSON file for each seed of each row, and a sheet of images.
        runs_dir: Gets the runs, with their checkpoints.
        page: Gets the tables.

    Raises:
        RuntimeError: Rows failed; the others are done.
        ValueError: There is no such row, or no dataset and nothing to pack it from; or an option is not used.
    """
    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes is {minutes}, must be positive")
    if report and cost:
        raise ValueError("--report and --cost are two things to do instead of running rows: take one of them")
    if report:
        refuse_idle(study, "--report writes the page of all", name=name, minutes=minutes)
    if cost:
        refuse_idle(study, "--cost times every row to its end", minutes=minutes)
    chosen = Study(config, tables)
    if report:
        return write_page(chosen, results_dir, page, StudyConfigs(chosen).identity if _has_data(chosen) else None)
    rows = chosen.named(name)
    _pack(chosen)
    runs = StudyRuns(chosen, runs_dir, results_dir)
    if cost:
        return measure_costs(runs, rows)
    places = [(row, seed) for row in rows for seed in row.seeds]
    waiting = [(row, seed) for row, seed in places if not runs.is_done(row, seed)]
    print(f"{len(places) - len(waiting)} of {len(places)} results are there", flush=True)
    failed: list[str] = []
    try:
        with _at_most(minutes):
            while waiting:
                left = list(_not_completed(runs, waiting, failed))
                if len(left) == len(waiting):
                    time.sleep(_PATIENCE)
                waiting = left
    except _TimeIsUpError:
        print(f"\nStopped after {minutes:g} minutes: the same command goes on from here")
    if failed:
        raise RuntimeError(f"{len(failed)} rows failed, whose messages stand above: {', '.join(failed)}")


_PATIENCE = 30.0  # seconds, where another process is at all that is left


def _has_data(study: Study) -> bool:
    return Path(study.data, INDEX_NAME).is_file()


def _pack(study: Study) -> None:
    """Make the dataset, or wait until another process has made it."""
    while not _has_data(study):
        if not study.pack:
            raise ValueError(
                f"there is no dataset in {study.data}, and no `pack` in the config that says how to make it"
            )
        try:
            with alone_in(Path(study.data)):
                if not _has_data(study):
                    args = ["data", "pack", *typed(study.pack), f"--output_dir={study.data}"]
                    run_command(args, f"{study.data} was not made")
        except AtWorkError:
            time.sleep(_PATIENCE)


def _not_completed(
    runs: StudyRuns, places: Sequence[tuple[StudyRow, int]], failed: list[str]
) -> Iterator[tuple[StudyRow, int]]:
    """Complete rows, but for those that another process is at; names of those that fail are added to a list."""
    for row, seed in places:
        if runs.is_done(row, seed):
            continue
        try:
            runs.complete(row, seed)
        except AtWorkError:
            yield row, seed
        except Exception as error:
            if not isinstance(error, CommandError):
                traceback.print_exc()
            print(f"{row.name}, seed {seed}: {error}", flush=True)
            failed.append(f"{row.name} (seed {seed})")


class _TimeIsUpError(Exception):
    """Of `_at_most`."""


@contextmanager
def _at_most(minutes: float | None) -> Iterator[None]:
    """Inside, so much time and no more: then it is as if Ctrl-C were pressed, at which commands save what they have.

    Raises:
        _TimeIsUpError: The time is up.
    """
    if minutes is None:
        yield
        return
    up = threading.Event()

    def stop() -> None:
        up.set()
        _thread.interrupt_main()

    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True
    # What a shell starts in the background ignores it, and then there would be nothing to simulate.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if up.is_set():
            raise _TimeIsUpError from None
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)


def run(args: list[str]) -> None:
    """Carry out `scalear study ...`.

    Args:
        args: The command line, from the command's name on.
    """
    study(**function_parser(study, "scalear study").parse_args(args[1:]))
