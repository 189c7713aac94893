from math import comb

import pytest
import torch

from scalear.evaluation.feature_set import FeatureSet
from scalear.evaluation.kid import KernelDistance, squared_mmd


def feature_set(points_NF):
    return FeatureSet({"pooled": points_NF})


def test_the_mean_of_small_sets_is_the_distance_of_their_distributions():
    """For one feature, E of the estimate is the sum over i of C(3, i) (E x^i - E y^i)^2, at any number of images."""
    torch.manual_seed(0)
    moments = [0, 1, 0], [0.5, 1.25, 0.5 * (0.25 + 3)]  # E x, E x^2, E x^3 of N(0, 1) and of N(1/2, 1)
    exact = sum(comb(3, i) * (a - b) ** 2 for i, a, b in zip((1, 2, 3), *moments, strict=True))
    same = torch.tensor([squared_mmd(torch.randn(8, 1), torch.randn(8, 1)) for _ in range(4000)])
    apart = torch.tensor([squared_mmd(torch.randn(8, 1), torch.randn(8, 1) + 0.5) for _ in range(4000)])
    for estimates, expected in ((same, 0.0), (apart, exact)):
        assert abs(estimates.mean() - expected) < 4 * estimates.std() / 4000**0.5
    assert same.min() < 0  # what an unbiased estimate of zero must be now and then


def test_a_side_no_larger_than_a_subset_is_taken_whole():
    torch.manual_seed(0)
    real, fake = torch.randn(70, 5), torch.randn(40, 5) + 0.1
    scores = KernelDistance(subset_size=70)(feature_set(real), feature_set(fake))
    assert scores == {"kid": pytest.approx(squared_mmd(fake, real)), "kid_std": 0.0}
    half = KernelDistance(subsets=400, subset_size=40)(feature_set(real), feature_set(fake))
    assert half["kid"] == pytest.approx(scores["kid"], abs=4 * half["kid_std"] / 20) and half["kid_std"] > 0


def test_subsets_are_those_of_the_seed():
    real, fake = feature_set(torch.randn(70, 5)), feature_set(torch.randn(90, 5))
    first = KernelDistance(3, 20, seed=1)(real, fake)
    assert first == KernelDistance(3, 20, seed=1)(real, fake) != KernelDistance(3, 20, seed=2)(real, fake)


def test_settings_out_of_range_are_refused():
    for subsets, size in ((0, 1000), (100, 1)):
        with pytest.raises(ValueError, match="subset_size >= 2"):
            KernelDistance(subsets, size)
