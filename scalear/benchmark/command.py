"""`scalear benchmark JOB -c CONFIG`: seconds, arithmetic and memory of a config's parts, compared in turns."""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from scalear.benchmark.jobs import EncodeJob, Job, LoadJob, SampleJob, TrainJob
from scalear.benchmark.parts import shares
from scalear.benchmark.plain import plain
from scalear.benchmark.solver import run_solver
from scalear.benchmark.subject import Build, Load, Subject, config_name
from scalear.benchmark.timing import interleave, peak_rss_bytes
from scalear.benchmark.work import Work, counted_work, official_work

_DESCRIPTION = """\
Time a job of any config, beside a 2048^3 bfloat16 matrix product timed before and after each repeat (the yardstick):
fraction = work per image / (seconds per image x yardstick). What is not listed below goes to the config, as in
`scalear fit`: -c FILE, --model.sampling.num_steps 8 ... Models have random weights.

`scalear benchmark solver` compares solvers of a trained flow head and has options of its own: add --help to see them.
"""


@dataclass
class Result:
    """One line of a report; `--json` writes a list of these, without the spread."""

    job: str
    config: str
    batch: int
    threads: int
    seconds_per_image: float
    work_tflop: float | None
    work_source: str
    yardstick_tflops: float
    fraction: float | None
    peak_rss_bytes: int | None
    parts: dict[str, float]
    spread: float


def own_parser() -> argparse.ArgumentParser:
    """Options of `scalear benchmark`; those of the config are parsed elsewhere."""
    parser = argparse.ArgumentParser(
        "scalear benchmark",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "job", choices=("train", "sample", "encode", "load"), metavar="{train,sample,encode,load,solver}"
    )
    parser.add_argument("--batch", type=int, default=4, help="images at a time")
    parser.add_argument("--decoder", choices=("in", "out"), default="in", help="sample: go on to pixels or stop before")
    parser.add_argument("--loader", action="store_true", help="train: read batches from the config's data")
    parser.add_argument("--plain", action="store_true", help="take the plain path: eager, dense masks; image files")
    parser.add_argument("--baseline", action="store_true", help="compare with the plain path, in turns")
    parser.add_argument("--against", metavar="ARGS", help="compare with the same and these arguments, in turns")
    parser.add_argument("--warmup", type=int, default=1, help="runs before those that count")
    parser.add_argument("--repeats", type=int, default=3, help="runs that count")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-memory", action="store_true", help="do not start another process for peak memory")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    return parser


@dataclass
class Setting:
    """One of the things compared: its arguments, and what they were parsed to."""

    args: list[str]
    own: argparse.Namespace
    config_args: list[str]

    @classmethod
    def parse(cls, args: list[str]) -> "Setting":
        """Split the arguments of the benchmark from those of the config."""
        own, config_args = own_parser().parse_known_args(args)
        if min(own.batch, own.repeats) < 1 or own.warmup < 0:
            raise ValueError(f"--batch and --repeats must be at least 1, got {own.batch}, {own.repeats}")
        return cls(args, own, config_args)

    @property
    def config(self) -> str:
        """Name of the (last) config file."""
        return config_name(self.config_args)

    @property
    def label(self) -> str:
        return f"{self.config} (plain)" if self.own.plain else self.config


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
    if first.own.threads:
        torch.set_num_threads(first.own.threads)
    if first.own.probe:
        print(_probe(first, build))
        return
    settings = [first]
    if first.own.baseline:
        settings.append(Setting.parse([*args, "--plain"]))
    if first.own.against is not None:
        settings.append(Setting.parse([*args, *shlex.split(first.own.against)]))
    memory = [None if first.own.no_memory else _peak_memory(setting) for setting in settings]
    results = _measure(settings, build)
    for result, peak in zip(results, memory, strict=True):
        result.peak_rss_bytes = peak
    _print(results)
    if first.own.json:
        records = [{key: value for key, value in asdict(result).items() if key != "spread"} for result in results]
        Path(first.own.json).write_text(json.dumps(records, indent=1) + "\n")


def make_job(setting: Setting, subject: Subject, batch: int) -> Job:
    """The job that a setting names."""
    own = setting.own
    match own.job:
        case "train":
            return TrainJob(subject, batch, own.loader)
        case "sample":
            return SampleJob(subject, batch, own.decoder == "in")
        case "encode":
            return EncodeJob(subject, batch, subject.image_size())
        case "load":
            return LoadJob(subject, batch, own.plain)


def _measure(settings: list[Setting], build: Build) -> list[Result]:
    own = settings[0].own
    device = torch.device(own.device)
    subjects = [build(setting.config_args, device) for setting in settings]
    work = [_work(setting, subject) for setting, subject in zip(settings, subjects, strict=True)]
    jobs = [make_job(setting, subject, setting.own.batch) for setting, subject in zip(settings, subjects, strict=True)]
    runs = [_on_its_path(setting, job) for setting, job in zip(settings, jobs, strict=True)]
    timings = interleave(runs, own.warmup, own.repeats, device)
    return [
        Result(
            job=setting.own.job,
            config=setting.label,
            batch=setting.own.batch,
            threads=torch.get_num_threads(),
            seconds_per_image=timing.median / job.images,
            work_tflop=done.tflop,
            work_source=done.source,
            yardstick_tflops=timing.yardstick,
            fraction=None if done.tflop is None else timing.fraction(done.tflop * job.images),
            peak_rss_bytes=None,
            parts=shares(run, getattr(job.subject.module, "generator", job.subject.module)),
            spread=timing.spread,
        )
        for setting, job, run, timing, done in zip(settings, jobs, runs, timings, work, strict=True)
    ]


def _work(setting: Setting, subject: Subject) -> Work:
    own = setting.own
    if own.job == "load":
        return Work(None, "none")
    # A config that something was typed over is another model or sampler than the one that was counted.
    if len(setting.config_args) == 2:
        known = official_work(own.job, setting.config, own.job == "sample" and own.decoder == "in")
        if known is not None:
            return known
    job = make_job(setting, subject, batch=1)
    if own.job == "train":
        with plain(subject.module):
            return counted_work(job.run, images=1)
    # The counter would hang hooks on gradients. Otherwise parameters have to seem trainable: autocast keeps the casts
    # of no others.
    trainable = [parameter for parameter in subject.module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    with plain(subject.module):
        work = counted_work(job.run, images=1)
    for parameter in trainable:
        parameter.requires_grad_(True)
    return work


def _on_its_path(setting: Setting, job: Job) -> Callable[[], None]:
    if not setting.own.plain:
        return job.run

    def run() -> None:
        with plain(job.subject.module):
            job.run()

    return run


def _peak_memory(setting: Setting) -> int:
    """Peak resident set of a fresh process that does the job once to warm up and once more."""
    command = [sys.executable, "-m", "scalear", "benchmark", *setting.args, "--probe"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the process that measures memory failed: {done.stderr.strip()}")
    return int(done.stdout.split()[-1])


def _probe(setting: Setting, build: Build) -> int:
    job = make_job(setting, build(setting.config_args, torch.device(setting.own.device)), setting.own.batch)
    run = _on_its_path(setting, job)
    run()
    run()
    return peak_rss_bytes()


def _print(results: list[Result]) -> None:
    for result in results:
        print(f"\n{result.job} {result.config}: batch {result.batch}, {result.threads} threads")
        seconds = result.seconds_per_image
        print(f"  {seconds:.4g} s/image, {1 / seconds:.4g} images/s, spread {result.spread:.0%}")
        if result.work_tflop is not None:
            print(
                f"  {result.fraction:.3f} of the yardstick's {result.yardstick_tflops:.3f} TFLOP/s, "
                f"{result.work_tflop:.4g} TFLOP/image ({result.work_source})"
            )
        if result.peak_rss_bytes is not None:
            print(f"  {result.peak_rss_bytes / 1e9:.2f} GB peak resident set")
        shown = {name: share for name, share in result.parts.items() if share >= 0.005}
        print("  " + ", ".join(f"{name} {share:.0%}" for name, share in shown.items()))
    first, *others = results
    for other in others:
        ratio = other.seconds_per_image / first.seconds_per_image
        print(f"\n{first.config} is {ratio:.2f} x as fast as {other.config}, image for image")
