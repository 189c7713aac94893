"""How far numbers of a sample set would differ with other samples of the same generator.

Legend: N images, F features.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.statistics import FeatureStatistics

LEVEL = 0.95
"""Share of the deviations that lie within an interval."""
BLOCK = 4096  # images whose features are copied at a time


def resampled_needs(metrics: Sequence[SampleMetric]) -> Needs:
    """What must be kept of the samples: vectors where metrics themselves need statistics alone."""
    features = [metric.fake.features for metric in metrics if metric.drawn_again]
    return Needs(points=frozenset().union(*features))


def intervals(
    metrics: Sequence[SampleMetric], real: FeatureSet, fake: FeatureSet, scores: dict[str, float], resamples: int
) -> dict[str, float]:
    """Percentile intervals of the bootstrap (Efron 1979): as many samples are drawn from the set, with replacement.

    Samples that are there twice shift all numbers that depend on the count, FID above all. So an interval is that of
    the deviations from their mean, around the number of the samples themselves. The real images stay as they are.

    Args:
        metrics: Those that are not `drawn_again` get none.
        real: Features of the real images.
        fake: Those of the samples, with `resampled_needs`.
        scores: The numbers.
        resamples: How often samples are drawn.

    Returns:
        `fid_low`, `fid_high` and so on.
    """
    generator = torch.Generator().manual_seed(0)
    drawn: list[dict[str, float]] = []
    metrics = [metric for metric in metrics if metric.drawn_again]
    for _ in range(resamples):
        row_N = torch.randint(len(fake.labels), fake.labels.shape, generator=generator)
        numbers = (metric(real, _drawn(fake, metric.fake, row_N)) for metric in metrics)
        drawn.append({name: value for found in numbers for name, value in found.items()})
    ends = {}
    for name in scores:
        values = np.array([numbers[name] for numbers in drawn if name in numbers])
        if len(values) == 0 or name.endswith("_std"):
            continue
        low, high = np.quantile(values - values.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends |= {f"{name}_low": scores[name] + low, f"{name}_high": scores[name] + high}
    return ends


def _drawn(fake: FeatureSet, needs: Needs, row_N: Tensor) -> FeatureSet:
    """The samples at these places."""
    statistics = {
        name: FeatureStatistics.of(fake.points[name][row_B] for row_B in row_N.split(BLOCK))
        for name in needs.statistics
    }
    return FeatureSet({name: fake.points[name][row_N] for name in needs.points}, statistics, fake.labels[row_N])
