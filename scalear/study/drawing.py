"""Curves of training losses as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scalear.files import atomic_file


def draw_losses(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """PNG: losses over steps.

    Args:
        path: The file.
        curves: Steps and losses, by what the legend calls them.

    Raises:
        ValueError: The library that draws is not installed.
    """
    try:
        from matplotlib.figure import Figure  # of an extra, which a page without curves does not need
    except ModuleNotFoundError as error:
        raise ValueError("curves need matplotlib, which is not installed: pip install 'scalear[tune]'") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="step", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})  # equal curves, equal bytes
