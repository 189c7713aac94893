"""`scalear benchmark`: jobs of any config are timed and compared, or solvers of a trained flow head."""

import re
import shlex
from functools import partial

import torch

from scalear.benchmark.comparison import compare, print_report
from scalear.benchmark.record import save_records
from scalear.benchmark.setting import JobOptions, Setting, config_name, config_places
from scalear.benchmark.solver import SolverOptions, compare_solvers, table
from scalear.benchmark.subject import Subject
from scalear.commands.run import PartsOnly
from scalear.commands.running.trained import Trained
from scalear.commands.typed.parser import CommandParser, summary
from scalear.hardware.precision import AUTO, fastest

_JOB_HELP = """\
That product is the yardstick: fraction = work per image / (seconds per image x yardstick). What is not listed below
goes to the config, as in `scalear fit`: -c FILE, --model.sampling.num_steps 8 ... But for --trainer.precision, which
must be typed: otherwise the fastest one here is taken, whatever the config says. Models have random weights.
`scalear benchmark solver` compares solvers of a trained flow head and has options of its own: add --help to see them.
"""

_SOLVER_HELP = """\
Prints for each its evaluations per scale, seconds, FID and recall (with the extractor of the config's report), the root
mean square distance of the first batch's latents to a solution in 200 steps, and whether it is on the Pareto front of
evaluations against FID or distance. A guided evaluation, of both branches in one batch, counts once.
"""


def run(args: list[str]) -> None:
    """Carry out `scalear benchmark ...`.

    Args:
        args: The command line, from the command's name on.
    """
    if args[1:2] == ["solver"]:
        return _run_solver(args[2:])
    args = args[1:]
    first = parse_setting(args)
    options, settings = first.options, [first]
    if options.baseline:
        settings.append(parse_setting([*args, "--plain"]))
    if options.against is not None:
        settings.append(parse_setting(changed(args, shlex.split(options.against)), options.against))
    results = compare(settings, build_subject)
    print_report(results)
    save_records(options.json, results)


def parse_setting(args: list[str], note: str = "") -> Setting:
    """Read the options of a job, and leave those of its config.

    Args:
        args: What follows `scalear benchmark`.
        note: What sets this setting apart, for its label.

    Raises:
        ValueError: An option has no such value.
    """
    parser = CommandParser(prog="scalear benchmark", description=f"{summary(JobOptions)} {_JOB_HELP}")
    parser.add_class_arguments(JobOptions, as_positional=True)
    own, config_args = parser.split(args)
    options = JobOptions(**parser.parse_args(own))
    note = "plain" if options.plain and not note else note
    return Setting(options, config_args, config_name(config_args) + (f" ({note})" if note else ""))


def changed(args: list[str], more: list[str]) -> list[str]:
    """Both; if `more` has configs, in the place of those of `args`: what these say would stay under the others."""
    configs, others = _split_configs(more)
    if not configs:
        return [*args, *more]
    first = min(config_places(args), default=len(args))
    return [*args[:first], *configs, *_split_configs(args[first:])[1], *others]


def _split_configs(args: list[str]) -> tuple[list[str], list[str]]:
    """Config files with their flags, and all other arguments."""
    places = [part for place in config_places(args) for part in (place, place + 1)]
    return [args[place] for place in places], [arg for place, arg in enumerate(args) if place not in places]


def build_subject(args: list[str], device: torch.device) -> Subject:
    """The parts of a config, with random weights.

    Args:
        args: Of the config, as `scalear fit` takes them.
        device: Where the parts are put.
    """
    return _subject(PartsOnly(args, prog="scalear benchmark"), args, device)


def _subject(parts: PartsOnly, args: list[str], device: torch.device) -> Subject:
    config, typed = parts.config_init, any(re.match(r"--trainer\.precision\b", arg) for arg in args)
    precision = config.trainer.precision if typed else AUTO
    return Subject(config.model, config.data, fastest(device) if precision == AUTO else precision, device)


def _run_solver(args: list[str]) -> None:
    trained = Trained(args, "benchmark solver", SolverOptions, _SOLVER_HELP)
    options = trained.request
    if options.threads:
        torch.set_num_threads(options.threads)
    subject = _subject(trained, args, torch.device(options.device))
    results, measured = compare_solvers(options, config_name(args), subject, partial(trained.load, subject.device))
    print(f"{table(results)}\n\n{options.images:,} images; {measured}")
    save_records(options.json, results)
