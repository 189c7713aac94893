"""What a search found: tables, a picture, and the winner as an overlay of its config."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalear.class_paths import settings_part
from scalear.evaluation.compared import markdown, on_front
from scalear.files import atomic_file, write_bytes
from scalear.tuning.judge import SECONDS
from scalear.tuning.search import START, Goal, SearchRecord
from scalear.tuning.space import Settings
from scalear.yaml_files import to_yaml

# What the number that a search is for is weighed against, and the sign that makes less of it better.
_AGAINST = {SECONDS: 1, "recall": -1, "fid": 1}
_TITLES = {SECONDS: "s/image"}


def weighed_against(record: SearchRecord, goal: Goal) -> list[str]:
    """Numbers of which there is a front: seconds, and FID and recall where they are another number and known."""
    return [name for name in _AGAINST if name != goal.number and name in record.trials[START].numbers]


def front(record: SearchRecord, goal: Goal, against: str) -> list[int]:
    """Trials that nothing beats in the goal and this number, from the best in this number to the best in the goal."""
    points = {
        number: (_AGAINST[against] * trial.numbers[against], goal.cost(trial.numbers))
        for number, trial in record.measured().items()
    }
    return sorted(itertools.compress(points, on_front(list(points.values()))), key=points.__getitem__)


def front_table(record: SearchRecord, goal: Goal) -> str:
    """Markdown: the trials on a front, that of the config and the winner, the best first."""
    fronts = {name: front(record, goal, name) for name in weighed_against(record, goal)}
    winner, measured = record.winner(goal), record.measured()
    shown = {START, winner}.union(*fronts.values())
    settings, numbers = list(record.trials[START].values), [goal.number, *fronts]
    rows = [["trial", *(name.rpartition(".")[2] for name in settings), *map(_title, numbers), "on the front of"]]
    for number in sorted(shown, key=lambda number: goal.cost(measured[number].numbers)):
        trial = measured[number]
        words = ", ".join(word for word, its in {"config": START, "winner": winner}.items() if its == number)
        told = f"{number} ({words})" if words else str(number)
        fronted = ", ".join(_title(name) for name, members in fronts.items() if number in members)
        rows.append(
            [told, *(_value(trial.values[name]) for name in settings), *_cells(trial.numbers, numbers), fronted]
        )
    return markdown(rows)


def judged_table(record: SearchRecord, goal: Goal) -> str:
    """Markdown: what the settings of the config and the winner reach where the search did not look."""
    numbers = [goal.number, *weighed_against(record, goal)]
    rows = [["", *map(_title, numbers)], ["config", *_cells(record.judged[START], numbers)]]
    if (winner := record.winner(goal)) != START:
        rows.append(["winner", *_cells(record.judged[winner], numbers)])
    return markdown(rows)


def write_overlay(path: Path, settings: Settings, scales: str | None, remark: str) -> None:
    """Settings as a YAML that comes after the config: all of them, for the search may have been told some.

    Args:
        path: The file.
        settings: Of the winner.
        scales: Those of `model.samples`, where it has any.
        remark: What it says of itself.
    """
    arguments: dict[str, Any] = {"guidance": asdict(settings.guidance), "sampling": settings_part(settings.sampling)}
    if scales is not None:
        arguments["samples"] = {"scales": scales}
    write_bytes(path, f"# {remark}\n{to_yaml({'model': {'init_args': arguments}})}".encode())


def draw_fronts(path: Path, record: SearchRecord, goal: Goal) -> None:
    """PNG: the number of the goal against each of the others, with the fronts."""
    against = weighed_against(record, goal)
    figure = Figure(figsize=(5 * len(against), 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(against), squeeze=False)[0], against, strict=True):
        _draw(axes, record, goal, name)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _draw(axes: Axes, record: SearchRecord, goal: Goal, against: str) -> None:
    def points(numbers: list[int]) -> list[list[float]]:
        return [[record.trials[number].numbers[name] for number in numbers] for name in (against, goal.number)]

    axes.scatter(*points(list(record.measured())), s=16, color="0.6", label="tried")
    axes.plot(*points(front(record, goal, against)), marker="o", ms=5, color="tab:blue", label="Pareto front")
    axes.scatter(*points([START]), s=80, marker="s", facecolors="none", edgecolors="black", label="config")
    axes.scatter(*points([record.winner(goal)]), s=120, marker="*", color="tab:red", zorder=3, label="winner")
    axes.set(xlabel=_title(against), ylabel=goal.number)
    axes.grid(alpha=0.3)
    axes.legend()


def _title(name: str) -> str:
    return _TITLES.get(name, name)


def _cells(numbers: dict[str, float], names: list[str]) -> list[str]:
    return [f"{numbers[name]:.4g}" for name in names]


def _value(value: Any) -> str:
    return "null" if value is None else str(value)
