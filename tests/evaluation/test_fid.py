import numpy as np
import pytest
import torch
from torch import nn

from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.fid import FeatureFID
from scalear.evaluation.statistics import frechet_distance


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_classifier(path, ImageClassifier(image_channels=1, num_classes=3, image_size=8, widths=(4, 6, 8)), {})
    return ClassifierFeatures(str(path), num_features=8)


def images(count, seed, channels=1):
    return torch.randint(256, (count, channels, 16, 16), generator=torch.Generator().manual_seed(seed)).byte()


def direct_fid(a, b):
    """Through the symmetric root of a covariance, another road than torchmetrics takes."""
    a, b = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross


def test_frechet_distance_equals_a_direct_computation():
    a, b = torch.randn(300, 8), torch.randn(200, 8) @ torch.randn(8, 8) + 1
    assert frechet_distance(a, b) == pytest.approx(direct_fid(a, b), rel=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_have_no_distance(value):
    a, b = torch.randn(30, 4), torch.randn(30, 4)
    b[0, 0] = value
    for pair in ((a, b), (b, a)):
        with pytest.raises(ValueError, match="not finite have no Frechet distance"):
            frechet_distance(*pair)


def test_frechet_distance_in_closed_form():
    a = torch.randn(500, 5)
    shift = torch.arange(5.0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + shift) == pytest.approx(shift.square().sum().item(), rel=1e-5)
    # N(m, S) against N(3m, 9S): 4 |m|^2 + (1 - 3)^2 tr S
    expected = 4 * a.mean(0).square().sum() + 4 * a.T.cov().trace()
    assert frechet_distance(a, 3 * a) == pytest.approx(expected.item(), rel=1e-5)


def test_small_distances_survive_large_means():
    a = torch.randn(400, 4, dtype=torch.float64)
    assert frechet_distance(a + 1e3, 1.01 * a + 1e3) == pytest.approx(direct_fid(a, 1.01 * a), rel=1e-4)


def test_fid_of_images_is_the_distance_of_their_features(extractor):
    metric, real, fake = FeatureFID(extractor), images(60, 1), images(40, 2)
    with torch.autocast("cpu", torch.bfloat16):  # must not reach the network or the statistics
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert metric.real_features_cov_sum.dtype == torch.float64
    expected = direct_fid(extractor(real)["pooled"], extractor(fake)["pooled"])
    assert metric.compute().item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_states_of_ranks_add_up(extractor):
    real, fake = images(60, 1), images(60, 2)
    ranks = []
    for part in (slice(0, 25), slice(25, 60)):
        ranks.append(FeatureFID(extractor))
        ranks[-1].update(real[part], real=True)
        ranks[-1].update(fake[part], real=False)
    ranks[0].merge_state(ranks[1])
    whole = FeatureFID(extractor)
    whole.update(real, real=True)
    whole.update(fake, real=False)
    assert ranks[0].real_features_num_samples == 60
    assert ranks[0].compute().item() == pytest.approx(whole.compute().item(), rel=1e-4)


def test_narrowed_statistics_are_refused(extractor):
    owner = nn.ModuleDict({"fid": FeatureFID(extractor)}).to(torch.bfloat16)  # what precision bf16-true does
    with pytest.raises(ValueError, match="float64"):
        owner["fid"].update(images(2, 0), real=True)


def test_the_extractor_is_no_part_of_its_owner(extractor):
    owner = nn.ModuleDict({"model": nn.Linear(2, 2), "fid": FeatureFID(extractor)}).train()
    owner["fid"].update(images(2, 0), real=True)
    assert set(owner.state_dict()) == {"model.weight", "model.bias"}
    assert len(list(owner.parameters())) == 2
    assert not any(module.training for module in extractor.network.modules())
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())
