"""Seconds, arithmetic and memory of jobs, compared in turns; and the report of them."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from scalear.benchmark.record import Record
from scalear.benchmark.setting import Setting
from scalear.benchmark.subject import Build
from scalear.benchmark.timing import Timing
from scalear.benchmark.worker import Worker


@dataclass(kw_only=True)
class Result(Record):
    """What was measured of one job."""

    spread: float
    """(slowest - fastest) / median of the repeats."""


def compare(settings: list[Setting], build: Build) -> list[Result]:
    """Time several jobs in turns, A B A B, so that all of them meet the machine in the same moods.

    Args:
        settings: The jobs; the first one says how often they are repeated.
        build: Makes the parts of a config from its arguments; can be pickled.

    Raises:
        ValueError: What went wrong in the process of a job.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(setting, build)) for setting in settings]
        runs = [worker.ask("warm_up") for worker in workers]
        timings = [Timing() for _ in workers]
        for _ in range(settings[0].options.repeats):
            for worker, timing in zip(workers, timings, strict=True):
                timing.add(*worker.ask("repeat"))
        compared = zip(settings, workers, runs, timings, strict=True)
        return [_result(setting, worker, *run, timing) for setting, worker, run, timing in compared]


def _result(setting: Setting, worker: Worker, images: int, how: dict[str, Any], timing: Timing) -> Result:
    peak = worker.ask("peak")  # before what is asked next takes memory
    work = worker.ask("work")
    return Result(
        job=setting.options.job,
        config=setting.label,
        batch=setting.options.batch,
        **how,
        seconds_per_image=timing.median / images,
        work_tflop=work.tflop,
        work_source=work.source,
        yardstick_tflops=timing.yardstick,
        fraction=None if work.tflop is None else timing.fraction(work.tflop * images),
        peak_rss_bytes=peak,
        parts=worker.ask("parts"),
        spread=timing.spread,
    )


def print_report(results: list[Result]) -> None:
    """For people: each result, and how the first compares with the others."""
    for result in results:
        print(f"\n{result.job} {result.config}: batch {result.batch}, {result.precision}, {result.machine}")
        seconds = result.seconds_per_image
        print(f"  {seconds:.4g} s/image, {1 / seconds:.4g} images/s, spread {result.spread:.0%}")
        if result.work_tflop is not None:
            print(
                f"  {result.fraction:.3f} of the yardstick's {result.yardstick_tflops:.3f} TFLOP/s, "
                f"{result.work_tflop:.4g} TFLOP/image ({result.work_source})"
            )
        print(f"  {result.peak_rss_bytes / 1e9:.2f} GB peak resident set")
        shown = {name: share for name, share in result.parts.items() if share >= 0.005}
        print("  " + ", ".join(f"{name} {share:.0%}" for name, share in shown.items()))
    first, *others = results
    for other in others:
        ratio = other.seconds_per_image / first.seconds_per_image
        print(f"\n{first.config} is {ratio:.2f} x as fast as {other.config}, image for image")
