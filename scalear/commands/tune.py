"""`scalear tune`: sampling settings of a trained generator, searched for a metric."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scalear.commands.running.trained import Trained
from scalear.files import check_new_file, check_writable, claimed
from scalear.hardware.machine import best_device, describe
from scalear.hardware.precision import AUTO, Precision, fastest
from scalear.training.generator.samples import SampleRequest
from scalear.training.run_folder import refuse_others, result_origin, sample_origin

try:
    from scalear.tuning.judge import SettingsJudge
    from scalear.tuning.report import draw_fronts, front_table, judged_table, write_overlay
    from scalear.tuning.search import START, Goal, SearchRecord, judge_winner, search
    from scalear.tuning.space import Settings, search_space
except ModuleNotFoundError as error:
    package = str(error.name).partition(".")[0]
    if package not in ("optuna", "matplotlib"):
        raise
    raise ValueError(f"scalear tune needs {package}, which is not installed: pip install 'scalear[tune]'") from error

_HELP = """\
The config's own settings are tried first. One half of the real images of model.report decides. The config's and the
winner are also measured on noise and on a half that the search does not use. A search that was killed goes on with the
same command, and one that has ended with a larger budget.
"""


@dataclass(kw_only=True)
class TuneRequest:
    """Search the sampling settings of a trained generator: guidance, and steps or temperature and top-p.

    Raises:
        ValueError: A number is too small.
    """

    output_dir: str
    """Gets trials.json, pareto.png and winner.yaml."""
    metric: str = "fid"
    """Number to search the best of: any that `scalear test` gives but spreads."""
    trials: int = 30
    """Settings to try, those of the config included."""
    minutes: float | None = None
    """Begin no trial after so many minutes of trials."""
    num_samples: int = 1000
    """Images of each trial; model.samples.batch_size at a time, or half of them."""
    search: dict[str, Any] | None = None
    """Other settings than the usual ones, by name: a range as in {model.guidance.weight: [1, 4]}, choices as in
    {model.sampling.method: [euler, ab2]}, or null for one that stays as it is."""
    pareto: bool = False
    """Search the front of the metric and the seconds per image, too, not the best of the metric alone."""
    seed: int = 0
    """Of noise and of what is tried; the next one is for the measurement at the end."""
    precision: Precision = AUTO
    """Of matrix products; `auto` is the fastest here."""
    force: bool = False
    """Begin anew where another search was."""

    def __post_init__(self) -> None:
        if self.trials < 2 or self.num_samples < 2 or (self.minutes is not None and self.minutes <= 0):
            raise ValueError(
                "--trials and --num_samples must be at least 2 and --minutes positive, "
                f"got {self.trials}, {self.num_samples} and {self.minutes}"
            )


def run(args: list[str]) -> None:
    """Carry out `scalear tune ...`.

    Args:
        args: The command line, from the command's name on.
    """
    trained = Trained(args[1:], "tune", TuneRequest, _HELP)
    request, model = trained.request, trained.module.model
    start, judge = Settings(model.guidance, model.sampling), _judge(trained)
    space = search_space(start, judge.schedule, request.search or {}, model.num_classes)
    goal = Goal(request.metric, judge.metrics[0].better, request.pareto)
    trained.load(best_device())

    folder = Path(request.output_dir)
    check_writable(folder)
    with claimed(folder / ".tune.lock", f"has begun to tune in {folder}"):
        record = SearchRecord(folder / "trials.json", _origin(trained, judge, space))
        if record.path.exists() and not request.force:
            found = SearchRecord.read(record.path)
            refuse_others(record.path, found.origin, record.origin, folder="output_dir")
            record = found
        else:
            others = folder / "pareto.png", folder / "winner.yaml"  # of another search
            for result in others:
                check_new_file(result, request.force)
            record.write()  # a command that is killed before its first trial does not leave the other search's
            for result in others:
                result.unlink(missing_ok=True)
        machine = describe(judge.model.device)
        if machine not in record.machines:
            record.machines.append(machine)
        _announce(judge, record)
        final = replace(judge, seed=request.seed + 1, half=1)
        if START not in record.judged:  # first, for nothing can be said if this fails
            record.judged[START] = final(start)
            record.write()
        search(record, space, goal, start, judge, request.seed, request.trials, request.minutes)
        judge_winner(record, goal, start, final)
        overlay = start.changed(record.trials[record.winner(goal)].values), trained.module.samples.scales
        _report(record, goal, judge, final, overlay)


def _judge(trained: Trained) -> SettingsJudge:
    """What measures, found out to be able to before any work.

    Raises:
        ValueError: The report of the config is missing, or does not serve; the metric cannot be had.
    """
    request, module = trained.request, trained.module
    report, schedule = module.report, module.samples.schedule(module.model.schedule)
    if report is None:
        raise ValueError(
            "scalear tune measures by model.report, and this config has none: set it, as configs/fashion does"
        )
    module.model.check(schedule)
    report.check(module.model.image_size(schedule))
    if report.reference.images is None:
        raise ValueError(
            f"scalear tune halves the real images, and {report.reference.name} holds statistics alone: set "
            "model.report.data_dir to images"
        )
    batch_size = min(module.samples.batch_size, -(-request.num_samples // 2))
    label_N = SampleRequest(num_images=request.num_samples).labels(module.model.num_classes)
    judge = SettingsJudge(
        *(module.model, schedule, report.reference.images, report.extractor, report.metrics),
        *(label_N, batch_size, request.precision, request.seed),
    )
    return replace(judge, metrics=judge.metrics_for(request.metric))


def _origin(trained: Trained, judge: SettingsJudge, space: dict[str, list[Any]]) -> dict[str, Any]:
    """What the trials follow from, by dotted names, as they are in JSON."""
    trained._dump_config()
    request, device = trained.request, judge.model.device
    model = sample_origin(result_origin(trained.config_dump, trained.weights))
    return {
        **{name: value for name, value in model.items() if not name.startswith(("model.samples", "trainer"))},
        **{f"search {name}": entry for name, entry in space.items()},
        **{name: getattr(request, name) for name in ("metric", "num_samples", "pareto", "seed")},
        "scales": str(judge.schedule),
        "batch_size": judge.batch_size,
        "precision": fastest(device) if request.precision == AUTO else request.precision,
        "real images": f"{judge.real.name} ({judge.real.fingerprint()[:8]})",
        "extractor": judge.extractor.name,
    }


def _announce(judge: SettingsJudge, record: SearchRecord) -> None:
    for caution in judge.cautions():
        print(caution, file=sys.stderr)
    if record.trials:
        print(f"{record.path} holds {len(record.trials)} trials already", file=sys.stderr)


def _report(
    record: SearchRecord,
    goal: Goal,
    judge: SettingsJudge,
    final: SettingsJudge,
    overlay: tuple[Settings, str | None],
) -> None:
    """Tables, picture and overlay, and what they are of."""
    folder, before, after = record.path.parent, record.judged[START], record.judged[record.winner(goal)]
    how = f"{judge.num_samples:,} samples in batches of {judge.batch_size}, {record.origin['precision']}"
    where = [f"seed {each.seed} against {each.reference.name}" for each in (judge, final)]
    print(front_table(record, goal))
    print(f"{how}, {where[0]}; {judge.extractor.name}; {' and '.join(record.machines)}\n")
    print(f"On noise and real images that the search did not use, {where[1]}:\n{judged_table(record, goal)}")
    if goal.cost(after) >= goal.cost(before):
        print("Nothing better than the config was found.")
    draw_fronts(folder / "pareto.png", record, goal)
    numbers = f"{goal.number} {after[goal.number]:.4g}, of the config alone {before[goal.number]:.4g}"
    write_overlay(folder / "winner.yaml", *overlay, f"Overlay, by `scalear tune`. {numbers}: {how}, {where[1]}")
    print(f"\nWrote {folder / 'winner.yaml'}, {folder / 'pareto.png'} and {record.path}")
