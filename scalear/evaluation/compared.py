"""Results beside one another: which of them nothing beats, and a table of them."""

from collections.abc import Sequence


def on_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Whether each is on the Pareto front: no other is as low in every number, and lower in one.

    Args:
        points: Numbers of each result, the better the lower.
    """
    return [
        not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        for point in points
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells in columns, whose first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *others = rows
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, ["-" * width for width in widths], *others)
    )
