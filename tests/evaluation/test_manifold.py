import math

import pytest
import torch

from scalear.evaluation.feature_set import FeatureSet
from scalear.evaluation.manifold import ManifoldMetrics


def measured(real, fake, *args, **kwargs):
    return ManifoldMetrics(*args, **kwargs)(FeatureSet({"pooled": real}), FeatureSet({"pooled": fake}))


def precision_recall(real, fake, k):
    scores = measured(real, fake, k)
    return scores["precision"], scores["recall"]


def test_precision_and_recall_of_sets_with_a_known_answer():
    line = torch.arange(10.0)[:, None]
    # Half of the line, twice as dense: all of it is real, and its last ball, around 4.5, ends at 5.
    dense = torch.arange(0, 5, 0.5)[:, None]
    assert precision_recall(line, dense, k=1) == (1.0, pytest.approx(0.6))
    # Two of four fakes lie far away; the distant pair's balls reach no real.
    fake = torch.tensor([[0.0], [1.0], [100.0], [100.5]])
    assert precision_recall(line, fake, k=1) == (0.5, pytest.approx(0.3))
    assert precision_recall(line, line + 1000, k=3) == (0.0, 0.0)
    assert precision_recall(line, line, k=3) == (1.0, 1.0)


def test_every_block_size_gives_what_loops_give():
    torch.manual_seed(0)
    real, fake = torch.randn(40, 3) + 50, 0.8 * torch.randn(30, 3) + 50.5
    reals, fakes = real.tolist(), fake.tolist()

    def radii(points, k):
        return [sorted(math.dist(a, b) for b in points)[k] for a in points]

    def inside(point, points, balls):
        return sum(math.dist(point, other) <= ball for other, ball in zip(points, balls, strict=True))

    expected = {
        "precision": sum(inside(point, reals, radii(reals, 3)) > 0 for point in fakes) / 30,
        "recall": sum(inside(point, fakes, radii(fakes, 3)) > 0 for point in reals) / 40,
        "density": sum(inside(point, reals, radii(reals, 5)) for point in fakes) / (5 * 30),
        "coverage": sum(
            min(math.dist(point, other) for other in fakes) < ball
            for point, ball in zip(reals, radii(reals, 5), strict=True)
        )
        / 40,
    }
    for block_size in (1, 7, 1024):
        assert measured(real, fake, block_size=block_size) == pytest.approx(expected, abs=1e-9)


def test_collapse_keeps_precision_and_loses_recall():
    """One mode of two that are real; then a blur over both."""
    torch.manual_seed(0)
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    real = modes.repeat(500, 1) + torch.randn(1000, 2)
    collapsed = measured(real, modes[0] + 0.5 * torch.randn(1000, 2))
    assert collapsed["precision"] > 0.97 and collapsed["recall"] < 0.5 and collapsed["coverage"] < 0.5
    blurred = measured(real, torch.tensor([5.0, 0.0]) + 10 * torch.randn(1000, 2))
    assert blurred["precision"] < 0.4 and blurred["recall"] > 0.9
    same = measured(real, modes.repeat(500, 1) + torch.randn(1000, 2))
    assert all(value > 0.9 for value in same.values()) and same["density"] == pytest.approx(1, abs=0.1)


def test_outliers_raise_precision_and_not_density():
    """The case for density (Naeem et al. 2020): a real outlier owns a ball that swallows far samples."""
    torch.manual_seed(0)
    real, far = torch.randn(500, 8), 12 * torch.ones(1, 8)
    fake = far + torch.randn(500, 8)
    clean, spoiled = measured(real, fake), measured(torch.cat([real, far]), fake)
    assert clean["precision"] == 0 and spoiled["precision"] == 1
    assert spoiled["density"] < 0.25


def test_copies_of_real_images_have_density_one():
    torch.manual_seed(0)
    real = torch.randn(300, 20)
    scores = measured(real, real, block_size=90)
    assert scores["density"] == pytest.approx(1, abs=0.01)  # rounding decides whether a ball holds what it ends at
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1


def test_settings_out_of_range_are_refused():
    for settings in ({"k": 0}, {"density_k": 0}, {"block_size": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            ManifoldMetrics(**settings)
