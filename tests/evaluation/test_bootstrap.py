"""Intervals of numbers: around the number, as wide as other samples would make it differ."""

import numpy as np
import pytest
import torch

from scalear.evaluation.bootstrap import intervals, resampled_needs
from scalear.evaluation.evaluate import default_metrics, score
from scalear.evaluation.feature_set import FeatureSet
from scalear.evaluation.fid import FrechetDistance
from scalear.evaluation.inception_score import InceptionScore
from scalear.evaluation.kid import KernelDistance
from scalear.evaluation.labels import LabelAccuracy
from scalear.evaluation.manifold import ManifoldMetrics
from scalear.evaluation.statistics import FeatureStatistics

METRICS = [FrechetDistance(), InceptionScore(split_size=200), LabelAccuracy()]


def features(count: int, seed: int, shift: float = 0.0) -> FeatureSet:
    """Of a class each, of which logits tell a good part."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    pooled = torch.randn(count, 8, generator=generator) + shift
    logits = torch.randn(count, 4, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 4)
    return FeatureSet({"pooled": pooled, "logits": logits}, {"pooled": FeatureStatistics.of([pooled])}, labels)


def ends(count: int) -> tuple[dict[str, float], dict[str, float]]:
    real, fake = features(2000, 0), features(count, 1, shift=0.2)
    scores = score(METRICS, real, fake)
    return scores, intervals(METRICS, real, fake, scores, 100)


def test_an_interval_holds_its_number_and_shrinks_with_the_square_root_of_the_count():
    narrow, wide = ends(3200), ends(200)
    for scores, found in (narrow, wide):
        assert found.keys() == {f"{name}_{end}" for name in ("fid", "is", "accuracy") for end in ("low", "high")}
        assert all(found[f"{name}_low"] < scores[name] < found[f"{name}_high"] for name in ("fid", "is", "accuracy"))
    for name in ("fid", "accuracy"):
        widths = [found[f"{name}_high"] - found[f"{name}_low"] for _, found in (narrow, wide)]
        assert widths[1] / widths[0] == pytest.approx(4, rel=0.4)


def test_it_is_as_wide_as_samples_of_other_seeds_differ():
    _, found = ends(400)
    real = features(2000, 0)
    drawn = [score(METRICS, real, features(400, seed, shift=0.2)) for seed in range(100)]
    for name in ("fid", "is", "accuracy"):
        low, high = np.quantile([numbers[name] for numbers in drawn], [0.025, 0.975])
        assert found[f"{name}_high"] - found[f"{name}_low"] == pytest.approx(high - low, rel=0.4)


def test_numbers_of_neighbours_have_none():
    metrics = [KernelDistance(), ManifoldMetrics()]
    real, fake = features(50, 0), features(50, 1)
    assert intervals(metrics, real, fake, score(metrics, real, fake), 3) == {}
    assert resampled_needs(metrics).points == frozenset()
    assert resampled_needs(default_metrics()).points == {"pooled", "spatial", "texture", "logits"}
