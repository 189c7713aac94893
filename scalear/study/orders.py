"""Whether the order of rows that a paper claims is found here, too."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf
from statistics import fmean, stdev

from scalear.study.plan import Table
from scalear.study.results import StudyResult

Results = Mapping[str, Mapping[int, StudyResult]]
"""By name of the row and seed."""
VERDICTS = ("holds", "does not", "within the spread", "one seed")
_NUMBER = "fid"


def claims(table: Table) -> list[tuple[str, str]]:
    """Pairs of rows that a paper has next to each other, the better first."""
    return [pair for order in table.orders for pair in pairwise(order)]


def compared(results: Results, better: str, worse: str) -> str | None:
    """Whether the row that a paper has before another one has the lower mean FID here, too.

    Returns:
        "holds" or "does not"; "within the spread" where the two means differ by less than the larger of the
        deviations over seeds, and "one seed" where a row has no deviation. None where a row has no FID.
    """
    fids = [_fids(results, name) for name in (better, worse)]
    if not all(fids):
        return None
    if min(map(len, fids)) < 2:
        return "one seed"
    difference = fmean(fids[1]) - fmean(fids[0])
    if abs(difference) < max(map(spread, fids)):
        return "within the spread"
    return "holds" if difference > 0 else "does not"


def spread(values: Sequence[float]) -> float:
    """Deviation over seeds (n - 1); 0 where training fails, of which FID is infinite."""
    return 0.0 if inf in values else stdev(values)


def _fids(results: Results, name: str) -> list[float]:
    return [result.numbers[_NUMBER] for result in results.get(name, {}).values() if _NUMBER in result.numbers]
