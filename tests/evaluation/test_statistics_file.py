"""Statistics files of the field and of this package, and what they may be compared with."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.evaluate import choose_metrics, default_metrics, evaluate_samples
from scalear.evaluation.extractors import ClassifierFeatures, InceptionFeatures
from scalear.evaluation.feature_set import Needs, extract
from scalear.evaluation.image_set import ArraySet
from scalear.evaluation.side import Side
from scalear.evaluation.statistics_file import read_statistics, statistics_needs, write_statistics


def images(count, seed, size=16):
    rng = np.random.default_rng(seed)
    return ArraySet(rng.integers(0, 256, (count, size, size, 1), np.uint8), np.arange(count) % 3, f"set {seed}")


def make_classifier(folder, seed):
    torch.manual_seed(seed)
    path = folder / f"classifier-{seed}.safetensors"
    save_classifier(path, ImageClassifier(1, 3, 32, widths=(4, 6, 8)), {})
    return ClassifierFeatures(str(path), num_features=8)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("weights"), 0)


def scores_of(samples, reference, extractor, asked=None):
    metrics = choose_metrics(default_metrics(), extractor, reference, samples, asked)
    return evaluate_samples(samples, reference, extractor, metrics)


def test_a_file_measures_what_its_images_measure(extractor, tmp_path):
    real, samples, needs = images(90, 0), Side.of(images(60, 1)), statistics_needs(extractor)
    write_statistics(tmp_path / "real.npz", real, extractor, extract(extractor, real, needs))
    reference = Side.open(str(tmp_path / "real.npz"))
    assert dataclasses.asdict(reference.record) == {
        "extractor": extractor.name,
        "images": "set 0",
        "image_shape": (16, 16, 1),
        "count": 90,
        "fingerprint": real.fingerprint(),
        "version": reference.record.version,
    }
    scores, whole = scores_of(samples, reference, extractor), scores_of(samples, Side.of(real), extractor)
    assert scores == {name: whole[name] for name in ("fid", "texture", "is", "is_std", "accuracy")}
    # Statistics may also stand for the samples.
    write_statistics(tmp_path / "fake.npz", samples.images, extractor, extract(extractor, samples.images, needs))
    both = scores_of(Side.open(str(tmp_path / "fake.npz")), reference, extractor)
    assert both == {name: whole[name] for name in ("fid", "texture")}


def test_statistics_go_before_the_images_beside_them(extractor, tmp_path):
    """ADM's file: images, of which precision and recall are, and statistics, taken over others, of which FID is."""
    few, many, samples = images(30, 0), images(90, 2), Side.of(images(60, 1))
    seen = extract(extractor, many, Needs(statistics=frozenset({"pooled"}))).statistics["pooled"]
    np.savez(
        tmp_path / "adm.npz",
        arr_0=few.images,
        mu=seen.mean_F.numpy(),
        sigma=seen.covariance_FF.numpy(),
    )
    reference = Side.open(str(tmp_path / "adm.npz"))
    scores = scores_of(samples, reference, extractor)
    of_few, of_many = (scores_of(samples, Side.of(real), extractor) for real in (few, many))
    assert scores["fid"] == of_many["fid"] != of_few["fid"]
    for name in ("precision", "recall", "density", "coverage", "kid", "texture"):
        assert scores[name] == of_few[name]
    assert "variety_min" not in scores and reference.count("pooled") is None and reference.count("texture") == 30


def test_inception_takes_files_of_adm_by_their_widths(tmp_path):
    arrays = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(tmp_path / "stats.npz", **arrays)
    reference, samples = Side.open(str(tmp_path / "stats.npz")), Side.of(images(4, 0))
    extractor = InceptionFeatures("random:0")
    chosen = choose_metrics(default_metrics(), extractor, reference, samples)
    assert [metric.numbers[0] for metric in chosen] == ["fid", "sfid", "is"]
    with pytest.raises(ValueError, match="precision cannot be measured: it needs real images, and stats.npz holds"):
        choose_metrics(default_metrics(), extractor, reference, samples, ["fid", "precision"])


def test_another_network_size_or_number_of_channels_is_refused(extractor, tmp_path):
    real, needs = images(90, 0), statistics_needs(extractor)
    write_statistics(tmp_path / "real.npz", real, extractor, extract(extractor, real, needs))
    reference = Side.open(str(tmp_path / "real.npz"))
    other = make_classifier(tmp_path, 1)
    with pytest.raises(ValueError, match=r"real.npz are of ImageClassifier \(.*\), not of ImageClassifier"):
        choose_metrics(default_metrics(), other, reference, Side.of(images(60, 1)))
    with pytest.raises(ValueError, match="samples of 32x32 pixels .* real images of 16x16"):
        choose_metrics(default_metrics(), extractor, reference, Side.of(images(60, 1, size=32)))
    colour = ArraySet(np.zeros((9, 16, 16, 3), np.uint8), np.full(9, -1), "colour")
    with pytest.raises(ValueError, match="1 channel.*, got 3"):
        choose_metrics(default_metrics(), extractor, reference, Side.of(colour))
    np.savez(tmp_path / "field.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(ValueError, match="field.npz holds statistics of 7 pooled features, .* gives 8"):
        choose_metrics(default_metrics(), extractor, Side.open(str(tmp_path / "field.npz")), Side.of(images(60, 1)))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"mu": np.zeros(3)}, r"got \(3,\) and None"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"got \(3,\) and \(4, 4\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "record": np.array("{}")}, "record in .* is not one of this version"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "record": np.array(json.dumps({"image_shape": [1]}))}, "record in"),
    ],
)
def test_broken_statistics_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_statistics(tmp_path / "stats.npz")
    (tmp_path / "stats.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no .npz file"):
        read_statistics(tmp_path / "stats.npz")


def test_a_file_without_images_and_statistics_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    with pytest.raises(ValueError, match="other.npz is not a sample set"):
        Side.open(str(tmp_path / "other.npz"))
