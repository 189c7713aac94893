"""docs/study.md from the results: tables, whether the papers' orders hold, curves and sheets."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean

from scalear.evaluation.compared import markdown
from scalear.files import write_bytes
from scalear.study.cost import Cost, hours, read_costs
from scalear.study.drawing import draw_losses
from scalear.study.orders import VERDICTS, Results, claims, compared, spread
from scalear.study.plan import Study, Table, TokenizerRow, TrainedRow
from scalear.study.results import IdentityOf, StudyResult, read_results, result_path

# Titles of columns, and how their numbers are written.
_NUMBERS = {"fid": ("FID", ".2f"), "kid": ("KID", ".5f"), "is": ("IS", ".2f"), "precision": ("precision", ".3f")}
_NUMBERS |= {"recall": ("recall", ".3f"), "accuracy": ("accuracy", ".3f"), "rfid": ("rFID", ".2f")}
_NUMBERS |= {"psnr": ("PSNR", ".2f"), "ssim": ("SSIM", ".3f")}
_SPEED = {"seconds_per_image_1": "s/image, batch 1", "seconds_per_image_100": "s/image, batch 100"}
_NOT_RUN = "not run"


def write_page(study: Study, folder: str | Path, page: str | Path, identity: IdentityOf | None = None) -> None:
    """Write the page and its curves; sheets of images are there already.

    Args:
        study: What it is about.
        folder: Of the results; gets the curves.
        page: The file.
        identity: What results follow from now, by which those that are out of date are left out; None where there is no
            dataset.

    Raises:
        ValueError: A file is none of a result.
    """
    results = read_results(folder, study, identity)
    for table in study.tables:
        if curves := _curves(table, results):
            draw_losses(Path(folder, _curves_name(table)), curves)
    text = page_of(study, results, folder, page)
    write_bytes(page, text.encode())


def page_of(study: Study, results: Results, folder: str | Path, page: str | Path) -> str:
    """The page as Markdown.

    Args:
        study: Rows and tables.
        results: Those that are there.
        folder: Of sheets, and of what was timed.
        page: Where the page is to be, for links.
    """
    places = [(name, seed) for name, row in study.rows.items() for seed in row.seeds]
    there = sum(seed in results.get(name, {}) for name, seed in places)
    parts = [_HEAD.format(there=there, places=len(places), **_chosen(study))]
    tokenizers = {name: None for name, row in study.rows.items() if isinstance(row, TokenizerRow)}
    of_tokenizers = Table(title="Tokenizers", rows=tokenizers, orders=[])
    for table in (*study.tables, of_tokenizers):
        parts += [f"## {table.title}", *_section(study, table, results, Path(folder), Path(page).parent)]
    parts += ["## What it takes", *_budget(study, read_costs(folder))]
    return "\n\n".join(parts) + "\n"


_HEAD = """\
# The papers' experiments at a laptop's size

This page is written by `make study-report` and is not edited by hand. **{there} of {places} results are there**; a row
without one is "not run".

`make study` trains, samples and measures what is missing, and goes on wherever it was stopped; with
`NAME=ablations/flowar-adaln` it does one row and what this needs, with `MINUTES=50` it stops in time. What is run
stands in [configs/study.yaml](../configs/study.yaml), what the papers have in [study/tables.yaml](study/tables.yaml).
A result that follows from another config, other data or an older method is left out here, and done anew.

- **Data.** Fashion-MNIST: 58,000 training and 2,000 validation images of the original training file, and the 10,000 of
  its test file (Debian's dataset-fashion-mnist). FID, KID, precision and recall are against the test images.
- **Features** are those of the embedded classifier, which has seen 45,000 of the training images and none of the test
  images. Its numbers compare with each other and with no paper's.
- **Guidance** of each row is the best of {trials} tries with its first seed, against halves of the validation images
  (`scalear tune`, the weight alone). No test image had a part in it. All else is as in the config of the family, but
  for what configs/study.yaml types over it.
- **Trainings.** Seeds are {seeds} in this order; none is left out.
{lengths}
- **Seconds** to train and per image are those of the clock, on a machine that may have had other work.
- **±** is the deviation over seeds (n - 1). "Order" compares the mean FID of a row with that of the row which the paper
  has before it: the order *holds*, or *does not*, or the two differ by less than the larger of their deviations; of
  *one seed* it says nothing. A row whose training *fails*, by numbers that are not finite, comes last."""


def _chosen(study: Study) -> dict[str, str]:
    """Numbers of groups, in words."""
    groups = {row.name.partition("/")[0]: row.group for row in study.rows.values() if isinstance(row, TrainedRow)}
    lengths = []
    for name, group in groups.items():
        seeds = "1 seed" if len(group.seeds) == 1 else f"{len(group.seeds)} seeds"
        measured = f", {group.samples:,} samples of each" if group.samples else ""
        lengths.append(f"  - {name}: {group.images:,} images, {seeds}{measured}")
    trials = sorted({group.trials for group in groups.values() if group.trials})
    seeds = dict.fromkeys(seed for group in groups.values() for seed in group.seeds)
    chosen = {"trials": " or ".join(map(str, trials)) or "no", "seeds": ", ".join(map(str, seeds))}
    return chosen | {"lengths": "\n".join(lengths)}


def _section(study: Study, table: Table, results: Results, folder: Path, above: Path) -> Iterator[str]:
    if table.rows:
        yield _table(study, table, results)
    if claims(table):
        yield _verdict(table, results)
    yield from _cautions(table, results)
    if table.remark:
        yield table.remark
    if _curves(table, results):
        yield f"![losses of training]({_link(folder / _curves_name(table), above)})"
    elif table.curves:
        yield f"Losses of {' and '.join(map(_short, table.curves))}: {_NOT_RUN}."
    for name in table.rows:
        row = study.rows[name]
        if row.seeds[0] in results.get(name, {}):
            sheet = result_path(folder, row, row.seeds[0]).with_suffix(".png")
            picture = f"\n\n![{_short(name)}]({_link(sheet, above)})" if sheet.is_file() else ""
            yield f"{_short(name)}: {_first(results[name]).line}{picture}"


def _cautions(table: Table, results: Results) -> Iterator[str]:
    """What is to be known of numbers, and of which rows."""
    of_cautions: dict[str, dict[str, None]] = {}
    for name in table.rows:
        for result in results.get(name, {}).values():
            for caution in result.cautions:
                of_cautions.setdefault(caution, {})[_short(name)] = None
    if of_cautions:
        yield "\n".join(f"- {caution} ({', '.join(names)})" for caution, names in of_cautions.items())


def _table(study: Study, table: Table, results: Results) -> str:
    """Ours beside the paper's; seconds have a column for each kind of machine."""
    of_rows = {name: list(results.get(name, {}).values()) for name in table.rows}
    every = [result for found in of_rows.values() for result in found]
    numbers = [name for name in _NUMBERS if any(name in result.numbers for result in every)] or ["fid"]
    of_paper, is_ordered = any(table.rows.values()), bool(claims(table))
    trained = sorted({result.machines[0] for result in every if len(result.machines) == 1})
    timed = sorted({result.measured_on for result in every if result.speed})
    head = ["", *(["FID (paper)", "IS (paper)"] if of_paper else []), *(_NUMBERS[name][0] for name in numbers)]
    head += [*(["order"] if is_ordered else []), "parameters", *(["precision"] if every else [])]
    head += [*(f"s to train ({machine})" for machine in trained)]
    head += [f"{title} ({machine})" for machine in timed for title in _SPEED.values()]
    rows = [head + (["GFLOP/image"] if timed else [])]
    for name, found in of_rows.items():
        seeds = len(study.rows[name].seeds)
        some = f" ({len(found)} of {seeds} seeds)" if 0 < len(found) < seeds else ""
        cells = [_short(name) + some, *(_paper(table.rows[name]) if of_paper else [])]
        ours = [
            _mean((r.numbers[number] for r in found if number in r.numbers), _NUMBERS[number][1]) for number in numbers
        ]
        cells += ours if found else [_NOT_RUN, *ours[1:]]
        cells += [_order(table, name, results)] if is_ordered else []
        cells.append(", ".join(f"{count:,}" for count in {r.parameters for r in found} - {None}))
        # Seeds of several precisions are averaged, and so named.
        cells += [", ".join(sorted({r.precision for r in found} - {""}))] if every else []
        cells += [_mean((r.train_seconds for r in found if r.machines == [machine]), ".0f") for machine in trained]
        for machine in timed:
            speeds = [result.speed for result in found if result.speed and result.measured_on == machine]
            cells += [_mean((speed[what] for speed in speeds), ".4f") for what in _SPEED]
        if timed:
            cells.append(_mean((1000 * r.speed["tflop_per_image"] for r in found if r.speed), ".3f"))
        rows.append(cells)
    return markdown(rows)


def _verdict(table: Table, results: Results) -> str:
    """How many of the paper's neighbours stand so here."""
    found = [compared(results, *pair) for pair in claims(table)]
    counts = [f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found]
    counts += [f"{found.count(None)} {_NOT_RUN}"] if None in found else []
    return f"The paper's order, {len(found)} comparison{'s' * (len(found) > 1)}: {', '.join(counts)}."


def _order(table: Table, name: str, results: Results) -> str:
    verdicts = {better: compared(results, better, worse) for better, worse in claims(table) if worse == name}
    return "; ".join(f"{verdict} (after {_short(better)})" for better, verdict in verdicts.items() if verdict)


def _budget(study: Study, costs: Mapping[str, Cost]) -> Iterator[str]:
    if not costs:
        yield "Nothing was timed: `scalear study --cost` times a step and an image of every row."
        return
    of_rows, machines = hours(study, costs), sorted({cost.machine for cost in costs.values()})
    spent = [
        f"{sum(spent for name, spent in of_rows.items() if costs[name].machine == machine):.1f} hours on {machine}"
        for machine in machines
    ]
    yield (
        f"{', '.join(spent)} for all seeds of the {len(of_rows)} rows below, by a training step and sampling of each "
        "(`scalear study --cost`: random weights; seconds of one thread are those that its CPU computed). That is "
        "training, search and sampling, without validation, measuring and starting."
    )
    rows = [["", "parameters", "s/step", "images/step", "s/sample", "seeds", "hours"]]
    for name, spent in of_rows.items():
        row, cost, cells = study.rows[name], costs[name], ["", "", ""]
        if isinstance(row, TrainedRow):
            cells = [f"{cost.parameters:,}", f"{cost.seconds_per_step:.3f}", str(row.batch_size)]
        cells.append("" if cost.seconds_per_image is None else f"{cost.seconds_per_image:.4f}")
        rows.append([name, *cells, str(len(row.seeds)), f"{spent:.2f}"])
    yield markdown(rows)


def _curves(table: Table, results: Results) -> dict[str, list[tuple[int, float]]]:
    """Of the first seed of each row; none before all are there."""
    found = {_short(name): _first(results[name]).loss for name in table.curves if results.get(name)}
    return found if len(found) == len(table.curves) else {}


def _curves_name(table: Table) -> str:
    return f"losses-{'-'.join(map(_short, table.curves))}.png"


def _mean(values: Iterable[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if failed := known.count(math.inf):
        return "fails" if failed == len(known) else f"{failed} of {len(known)} fail"
    deviation = f" ± {spread(known):{form}}" if len(known) > 1 else ""
    return f"{fmean(known):{form}}{deviation}" if known else ""


def _paper(numbers: tuple[float, float] | None) -> list[str]:
    if numbers is None:
        return ["", ""]
    return ["fails", ""] if math.isinf(numbers[0]) else [f"{value:g}" for value in numbers]


def _link(path: Path, above: Path) -> str:
    return Path(os.path.relpath(path, above)).as_posix()


def _short(name: str) -> str:
    return name.partition("/")[2]


def _first(of_seeds: Mapping[int, StudyResult]) -> StudyResult:
    return of_seeds[min(of_seeds)]
