"""The same numbers as torch-fidelity's, and as ADM's evaluator, whose formulas stand here in NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy import linalg
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from scalear.evaluation.evaluate import default_metrics, score
from scalear.evaluation.feature_set import FeatureSet
from scalear.evaluation.fid import FrechetDistance
from scalear.evaluation.inception_score import InceptionScore
from scalear.evaluation.kid import KernelDistance
from scalear.evaluation.manifold import ManifoldMetrics
from scalear.evaluation.statistics import FeatureStatistics

FEATURES, CLASSES = 24, 10


def feature_set(count: int, seed: int, shift: float = 0.0) -> FeatureSet:
    """Features that are no Gaussian, with a spectrum that falls, and logits."""
    generator = torch.Generator().manual_seed(seed)
    spectrum_F = 1 / (1 + torch.arange(FEATURES))
    points_NF = (torch.randn(count, FEATURES, generator=generator) + shift).relu() * spectrum_F
    logits_NK = 4 * torch.randn(count, CLASSES, generator=generator)
    statistics = {name: FeatureStatistics.of([points_NF]) for name in ("pooled", "spatial", "texture")}
    return FeatureSet({"pooled": points_NF, "logits": logits_NK}, statistics, torch.arange(count) % CLASSES)


@pytest.fixture(scope="module")
def sides():
    return feature_set(1400, 0), feature_set(1300, 1, shift=0.2)


def test_torch_fidelity_has_the_same_fid(sides):
    statistics = [fid_features_to_statistics(side.points["pooled"].double()) for side in sides]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert FrechetDistance()(*sides)["fid"] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("count, splits", [(1300, 1), (1300, 13), (1290, 10)])
def test_torch_fidelity_has_the_same_inception_score(sides, count, splits):
    logits_NK = sides[1].points["logits"][:count]
    expected = isc_features_to_metric(logits_NK, splits, shuffle=False)
    scores = InceptionScore(count // splits)(sides[0], FeatureSet({"logits": logits_NK}))
    assert scores["is"] == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert scores["is_std"] == pytest.approx(expected["inception_score_std"], rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("size", [200, 1300])
def test_torch_fidelity_has_the_same_kid(sides, size):
    real, fake = (side.points["pooled"].double() for side in sides)
    expected = kid_features_to_metric(fake, real, kid_subsets=20, kid_subset_size=size, verbose=False)
    scores = KernelDistance(20, size)(*sides)
    assert scores["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert scores["kid_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-7)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_torch_fidelity_has_the_same_precision_and_recall(sides, k):
    real, fake = (side.points["pooled"].double() for side in sides)
    expected = prc_features_to_metric(fake, real, prc_neighborhood=k, verbose=False)
    scores = ManifoldMetrics(k)(*sides)
    assert 0.1 < scores["recall"] < 0.99
    assert scores["precision"] == pytest.approx(expected["precision"], rel=1e-6)  # torch-fidelity's means are float32
    assert scores["recall"] == pytest.approx(expected["recall"], rel=1e-6)


def test_density_and_coverage_as_their_authors_write_them(sides):
    """Naeem et al. 2020, section 3, over whole matrices."""
    real, fake = (side.points["pooled"].double().numpy() for side in sides)
    within = np.linalg.norm(real[:, None] - real[None], axis=2)
    radius = np.sort(within, axis=1)[:, 5]  # the nearest is the point itself
    across = np.linalg.norm(real[:, None] - fake[None], axis=2)
    scores = ManifoldMetrics()(*sides)
    assert scores["density"] == pytest.approx((across < radius[:, None]).sum(0).mean() / 5, rel=1e-12)
    assert scores["coverage"] == pytest.approx((across.min(1) < radius).mean(), rel=1e-12)


def adm_fid(real: np.ndarray, fake: np.ndarray) -> float:
    """`FIDStatistics.frechet_distance` of guided-diffusion's evaluations/evaluator.py."""
    (mu1, sigma1), (mu2, sigma2) = ((np.mean(x, axis=0), np.cov(x, rowvar=False)) for x in (fake, real))
    diff = mu1 - mu2
    covmean = linalg.sqrtm(sigma1.dot(sigma2))
    assert np.isfinite(covmean).all()
    return diff.dot(diff) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(covmean.real)


def adm_inception_score(logits: np.ndarray, split_size: int) -> float:
    """`compute_inception_score` there."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    preds = exponentials / exponentials.sum(1, keepdims=True)
    scores = []
    for i in range(0, len(preds), split_size):
        part = preds[i : i + split_size]
        kl = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        scores.append(np.exp(np.mean(np.sum(kl, 1))))
    return float(np.mean(scores))


def adm_precision_recall(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    """`compute_prec_recall` there, whose distances are squared, without its rounding to float16."""

    def distances(u, v):
        return np.maximum((u**2).sum(1)[:, None] - 2 * u @ v.T + (v**2).sum(1)[None], 0)

    radii1, radii2 = (np.partition(distances(x, x), (0, 1, 2, 3), axis=1)[:, 3] for x in (real, fake))
    between = distances(real, fake)
    return (between <= radii1[:, None]).any(0).mean(), (between <= radii2[None]).any(1).mean()


def test_adm_has_the_same_numbers(sides):
    real, fake = (side.points["pooled"].double().numpy() for side in sides)
    logits = sides[1].points["logits"].double().numpy()
    assert FrechetDistance()(*sides)["fid"] == pytest.approx(adm_fid(real, fake), rel=1e-7)
    for split_size in (5000, 500):  # 1300 samples: the last split is smaller
        assert InceptionScore(split_size)(*sides)["is"] == pytest.approx(adm_inception_score(logits, split_size))
    scores = ManifoldMetrics()(*sides)
    assert (scores["precision"], scores["recall"]) == adm_precision_recall(real, fake)


def test_fewer_images_than_features_cost_no_digits():
    """A matrix root of singular covariances is good to half of them; the distance can be had without a covariance."""
    torch.manual_seed(0)
    spectrum_F = torch.arange(1, 301).double() ** -0.75
    real, fake = (torch.randn(100, 300, dtype=torch.float64) * spectrum_F + shift for shift in (0, 0.01))
    a, b = (x - x.mean(0) for x in (real, fake))
    cross = torch.linalg.svdvals(a @ b.T).sum() / 99
    expected = (real.mean(0) - fake.mean(0)).square().sum() + (a.square().sum() + b.square().sum()) / 99 - 2 * cross
    sides = [FeatureSet(statistics={"pooled": FeatureStatistics.of([x])}) for x in (real, fake)]
    assert FrechetDistance()(*sides)["fid"] == pytest.approx(expected.item(), rel=1e-12)


def test_numbers_do_not_depend_on_the_order_of_images_or_on_blocks(sides):
    order = torch.randperm(1300, generator=torch.Generator().manual_seed(0))
    real, fake = sides
    mixed = {name: points[order] for name, points in fake.points.items()}
    statistics = {name: FeatureStatistics.of(mixed["pooled"].split(70)) for name in fake.statistics}
    shuffled = FeatureSet(mixed, statistics, fake.labels[order])
    plain = {metric: metric for metric in default_metrics()}
    whole = [KernelDistance(subset_size=1400) if isinstance(metric, KernelDistance) else metric for metric in plain]
    blocks = [ManifoldMetrics(block_size=70) if isinstance(metric, ManifoldMetrics) else metric for metric in whole]
    expected = score(whole, real, fake)
    assert score(blocks, real, shuffled) == pytest.approx(expected, rel=1e-9) and len(expected) == 13
