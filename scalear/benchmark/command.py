"""`scalear benchmark JOB -c CONFIG`: seconds, arithmetic and memory of a config's parts, compared in turns."""

import shlex
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from scalear.benchmark.setting import Setting, config_places, split_configs
from scalear.benchmark.solver import run_solver
from scalear.benchmark.subject import Build, Load
from scalear.benchmark.timing import Timing
from scalear.benchmark.worker import Worker
from scalear.files import write_json


@dataclass
class Result:
    """One line of a report; `--json` writes a list of these, without the spread."""

    job: str
    config: str
    batch: int
    threads: int
    precision: str
    machine: str
    seconds_per_image: float
    work_tflop: float | None
    work_source: str
    yardstick_tflops: float
    fraction: float | None
    peak_rss_bytes: int
    parts: dict[str, float]
    spread: float


def run_benchmark(args: list[str], build: Build, load: Load) -> None:
    """Carry out `scalear benchmark ...`.

    Args:
        args: The command line.
        build: Makes the parts of a config from its arguments.
        load: Reads a checkpoint into a module.
    """
    if args[:1] == ["solver"]:
        return run_solver(args[1:], build, load)
    first = Setting.parse(args)
    settings = [first]
    if first.own.baseline:
        settings.append(Setting.parse([*args, "--plain"]))
    if first.own.against is not None:
        settings.append(Setting.parse(_changed(args, shlex.split(first.own.against)), first.own.against))
    results = _measure(settings, build)
    _print(results)
    if first.own.json:
        records = [{key: value for key, value in asdict(result).items() if key != "spread"} for result in results]
        write_json(first.own.json, records)


def _changed(args: list[str], more: list[str]) -> list[str]:
    """Both; if `more` has configs, in the place of those of `args`: what these say would stay under the others."""
    configs, others = split_configs(more)
    if not configs:
        return [*args, *more]
    first = min(config_places(args), default=len(args))
    return [*args[:first], *configs, *split_configs(args[first:])[1], *others]


def _measure(settings: list[Setting], build: Build) -> list[Result]:
    """Time several jobs in turns, A B A B, so that all of them meet the machine in the same moods."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(setting, build)) for setting in settings]
        runs = [worker.ask("warm_up") for worker in workers]
        timings = [Timing() for _ in workers]
        for _ in range(settings[0].own.repeats):
            for worker, timing in zip(workers, timings, strict=True):
                timing.add(*worker.ask("repeat"))
        compared = zip(settings, workers, runs, timings, strict=True)
        return [_result(setting, worker, *run, timing) for setting, worker, run, timing in compared]


def _result(setting: Setting, worker: Worker, images: int, how: dict[str, Any], timing: Timing) -> Result:
    peak = worker.ask("peak")  # before what is asked next takes memory
    work = worker.ask("work")
    return Result(
        job=setting.own.job,
        config=setting.label,
        batch=setting.own.batch,
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


def _print(results: list[Result]) -> None:
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
