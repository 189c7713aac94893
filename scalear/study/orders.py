"""Whether the order of rows that a paper claims is found here, too."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev

from scalear.study.plan import Table
from scalear.study.results import StudyResult

Results = Mapping[str, Mapping[int, StudyResult]]
"""By name of the row and seed."""
VERDICTS = ("holds", "does not", "within the spread")
_NUMBER = "fid"


def claims(table: Table) -> list[tuple[str, str]]:
    """Pairs of rows that a paper has next to each other, the better first."""
    return [pair for order in table.orders for pair in pairwise(order)]


def compared(results: Results, better: str, worse: str) -> str | None:
    """Whether the row that a paper has before another one has the lower mean FID here, too.

    Returns:
        "holds" or "does not", or "within the spread" where the two means differ by less than the larger of the
        deviations over seeds; None where a row has no FID.
    """
    fids = [_fids(results, name) for name in (better, worse)]
    if not all(fids):
        return None
    difference = fmean(fids[1]) - fmean(fids[0])
    if abs(difference) < max(map(spread, fids)):
        return "within the spread"
    return "holds" if difference > 0 else "does not"


def spread(values: Sequence[float]) -> float:
    """Deviation over seeds (n - 1); 0 of a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def _fids(results: Results, name: str) -> list[float]:
    return [result.numbers[_NUMBER] for result in results.get(name, {}).values() if _NUMBER in result.numbers]
