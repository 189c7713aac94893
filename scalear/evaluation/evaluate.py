"""Numbers of a sample set against real images: one pass of one extractor over either side, every metric."""

import functools
import operator
from collections.abc import Sequence
from typing import Literal

import torch

from scalear.distributed.patient_ranks import ALONE, PatientRanks
from scalear.evaluation.bootstrap import intervals, resampled_needs
from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.fid import FrechetDistance
from scalear.evaluation.inception_score import InceptionScore
from scalear.evaluation.kid import KernelDistance
from scalear.evaluation.labels import ClassVariety, LabelAccuracy
from scalear.evaluation.manifold import ManifoldMetrics
from scalear.evaluation.metric import SampleMetric, require_finite
from scalear.evaluation.side import Side


def default_metrics() -> list[SampleMetric]:
    """All metrics, with the settings of the field."""
    return [
        FrechetDistance(),
        FrechetDistance("sfid", "spatial"),
        FrechetDistance("texture", "texture", standardise=True),
        InceptionScore(),
        KernelDistance(),
        ManifoldMetrics(),
        LabelAccuracy(),
        ClassVariety(),
    ]


def obstacle(metric: SampleMetric, extractor: FeatureExtractor, real: Side, fake: Side) -> str | None:
    """Why these sides cannot have a metric; None if they can."""
    given = extractor.widths.keys()
    if lacking := (metric.real | metric.fake).features - given:
        return f"{extractor.name} gives no {min(lacking)} features, only {', '.join(given)}"
    if metric.needs_labels_known and not extractor.knows_labels:
        return f"{extractor.name} does not know the classes that labels count"
    for side, needs, what in ((fake, metric.fake, "samples"), (real, metric.real, "real images")):
        if not side.unstored(needs).images:
            continue
        if side.images is None:
            return f"it needs {what}, and {side.name} holds statistics alone"
        if len(side.images) < needs.count:
            return f"it needs at least {needs.count} {what}, and {side.name} has {len(side.images)}"
        if needs.labels and not side.images.labelled:
            return f"it needs the class of each of the {what}, which {side.name} does not have"
    return None


def choose_metrics(
    metrics: Sequence[SampleMetric],
    extractor: FeatureExtractor,
    real: Side,
    fake: Side,
    asked: Sequence[str] | None = None,
) -> list[SampleMetric]:
    """Those that both sides can have, found out before the work begins.

    Args:
        metrics: To choose from.
        extractor: Network that measures.
        real: Real images.
        fake: Samples.
        asked: Names of the numbers that are wanted. By default all that can be had.

    Raises:
        ValueError: One that was asked for cannot be had, or nobody knows it; the sides do not compare.
    """
    for side in (fake, real):
        side.check(extractor)
    sizes = [side.image_shape and side.image_shape[:2] for side in (fake, real)]
    if None not in sizes and sizes[0] != sizes[1]:
        ours, theirs = ("x".join(map(str, size)) for size in sizes)
        raise ValueError(
            f"samples of {ours} pixels ({fake.name}) do not compare with real images of {theirs} ({real.name}): take "
            "those of the same size"
        )
    known = [number for metric in metrics for number in metric.numbers]
    if unknown := [number for number in asked or () if number not in known]:
        raise ValueError(f"there is no metric {unknown[0]!r}; there are {', '.join(known)}")
    chosen = []
    for metric in metrics:
        wanted = [number for number in metric.numbers if asked is None or number in asked]
        reason = obstacle(metric, extractor, real, fake) if wanted else None
        if reason and asked is not None:
            raise ValueError(f"{wanted[0]} cannot be measured: {reason}")
        if wanted and not reason:
            chosen.append(metric)
    return chosen


def needs_of(metrics: Sequence[SampleMetric], side: Literal["real", "fake"]) -> Needs:
    """All that metrics need of a side."""
    return functools.reduce(operator.or_, (getattr(metric, side) for metric in metrics), Needs())


def score(metrics: Sequence[SampleMetric], real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
    """The numbers of all metrics by name.

    Raises:
        NonFiniteScoreError: One is NaN or infinite; names it.
    """
    numbers = {name: value for metric in metrics for name, value in metric(real, fake).items()}
    require_finite(numbers)
    return numbers


def evaluate_samples(
    samples: Side,
    reference: Side,
    extractor: FeatureExtractor,
    metrics: Sequence[SampleMetric],
    floor: Side | None = None,
    resamples: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    ranks: PatientRanks = ALONE,
) -> dict[str, float]:
    """Compare samples with real images.

    Args:
        samples: Generated images, with or without the classes that were asked for; or their statistics.
        reference: Real images that no training saw; or their statistics.
        extractor: Network that measures.
        metrics: What is measured: of `choose_metrics`.
        floor: Other real images (of the training split), as many as samples, and measured like them: the best that
            a generator can hope for.
        resamples: How often samples are drawn anew for the `intervals` of the numbers; 0: no intervals.
        batch_size: Images per pass of the extractor; changes nothing but memory. Default: the extractor's.
        device: Where the extractor runs.
        ranks: Who shares the extractor's work; all call this at once, and get the same numbers.

    Returns:
        Numbers by name; the Frechet distances of the floor as `fid_floor` and so on; ends of intervals as `fid_low`
        and `fid_high`.

    Raises:
        ValueError: The floor has another number of images, or samples that are to be drawn anew are not there.
    """
    if floor is not None and floor.count("pooled") != samples.count("pooled"):
        raise ValueError(
            f"the floor of {samples.count('pooled')} samples needs as many real images, got {floor.count('pooled')}"
        )
    if resamples and samples.statistics:
        raise ValueError(f"intervals need the features of samples, and {samples.name} is known by its statistics")
    how = {"batch_size": batch_size, "device": device, "ranks": ranks}
    real = reference.features(extractor, needs_of(metrics, "real"), **how)
    needs = needs_of(metrics, "fake") | (resampled_needs(metrics) if resamples else Needs())
    fake = samples.features(extractor, needs, **how)
    scores = ranks.first(lambda: score(metrics, real, fake))
    if resamples:
        scores |= ranks.first(lambda: intervals(metrics, real, fake, scores, resamples))
    if floor is not None:
        distances = [metric for metric in metrics if isinstance(metric, FrechetDistance)]
        other = floor.features(extractor, needs_of(distances, "fake"), **how)
        of_floor = ranks.first(lambda: score(distances, real, other))
        scores |= {f"{name}_floor": value for name, value in of_floor.items()}
    return scores
