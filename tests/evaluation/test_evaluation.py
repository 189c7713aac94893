"""What is measured of which sides, and what the numbers do not depend on."""

from pathlib import Path

import measure_memory
import numpy as np
import pytest
import torch
from process_fixtures import Forked

from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.evaluate import choose_metrics, default_metrics, evaluate_samples, needs_of, score
from scalear.evaluation.extractors import FASHION_WEIGHTS, ClassifierFeatures, InceptionFeatures
from scalear.evaluation.feature_set import FeatureSet, Needs, extract
from scalear.evaluation.image_set import ArraySet, ShardSet
from scalear.evaluation.labels import class_variety
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.side import Side

ROOT = Path(__file__).parents[2]


def image_set(count, seed, name, labelled=True):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 80, (count, 16, 16, 1)) + 60 * labels[:, None, None, None]
    return ArraySet(images.astype(np.uint8), labels if labelled else np.full(count, -1), name)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_classifier(path, ImageClassifier(1, 3, 32, widths=(4, 6, 8)), {})
    return ClassifierFeatures(str(path), num_features=8)


def chosen(extractor, real, fake, asked=None):
    return choose_metrics(default_metrics(), extractor, real, fake, asked)


class Broken(SampleMetric):
    """Gives no number."""

    numbers = ("broken", "whole")

    def __call__(self, real, fake):
        return {"broken": float("nan"), "whole": 1.0}


def test_a_number_that_is_not_finite_is_an_error_with_its_name(extractor):
    side = Side.of(image_set(30, 0, "val"))
    with pytest.raises(ValueError, match="broken is nan, and is not written"):
        evaluate_samples(side, side, extractor, [Broken()])


def test_variety_per_class():
    real, label = torch.randn(400, 6, dtype=torch.float64), torch.arange(400) % 2
    shrunk = real.mean(0) + (real - real.mean(0)) * torch.where(label == 0, 0.25, 2.0)[:, None] + 7
    ratio = class_variety(real, label, shrunk, label, num_classes=3)
    assert ratio[:2].tolist() == pytest.approx([0.25, 2.0], rel=1e-6)
    assert ratio[2].isnan()  # no image of class 2
    with pytest.raises(ValueError, match="0..2"):
        class_variety(real, label, shrunk[:1], torch.tensor([3]), num_classes=3)


def test_copies_and_collapse(extractor):
    real, other = image_set(90, 0, "val"), image_set(90, 1, "train")
    reference, floor = Side.of(real), Side.of(other)
    metrics = chosen(extractor, reference, reference)
    copies = evaluate_samples(reference, reference, extractor, metrics, floor)
    assert copies["fid"] == pytest.approx(0, abs=1e-9) and copies["fid_floor"] > 1e-7
    assert copies["precision"] == copies["recall"] == copies["variety_min"] == 1.0

    collapsed = Side.of(ArraySet(real.images[real.labels], real.labels, "one image per class"))
    scores = evaluate_samples(collapsed, reference, extractor, metrics, floor, batch_size=32)
    assert scores["fid"] > scores["fid_floor"] == pytest.approx(copies["fid_floor"], rel=1e-6)
    assert scores["variety_min"] == pytest.approx(0, abs=1e-6) and scores["recall"] < 0.2
    assert 0 <= scores["accuracy"] <= 1
    with pytest.raises(ValueError, match="as many"):
        evaluate_samples(reference, reference, extractor, metrics, Side.of(image_set(80, 1, "train")))


def test_numbers_do_not_depend_on_batches_or_processes():
    extractor = ClassifierFeatures(str(ROOT / FASHION_WEIGHTS))
    real, fake = (ShardSet(ROOT / "data/fashion-mnist", split, 300) for split in ("val", "train"))
    metrics = chosen(extractor, Side.of(real), Side.of(fake))
    expected = evaluate_samples(Side.of(fake), Side.of(real), extractor, metrics, batch_size=300)
    assert len(expected) == 12 and expected["fid"] > 0.1
    assert evaluate_samples(Side.of(fake), Side.of(real), extractor, metrics, batch_size=7) == pytest.approx(
        expected, rel=1e-6
    )
    shares = [range(0, 100), range(100, 101), range(101, 300)]
    sides = []
    for side, images in (("real", real), ("fake", fake)):
        needs = needs_of(metrics, side)
        sides.append(FeatureSet.joined([extract(extractor, images, needs, rows=rows) for rows in shares]))
    assert score(metrics, *sides) == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_had_is_left_out(extractor):
    def names(real, fake, extractor=extractor):
        metrics = chosen(extractor, Side.of(real), Side.of(fake))
        return {number for metric in metrics for number in metric.numbers}

    labelled, plain, few = image_set(30, 0, "l"), image_set(30, 1, "p", labelled=False), image_set(4, 2, "f")
    everything = {number for metric in default_metrics() for number in metric.numbers}
    assert names(labelled, labelled) == everything - {"sfid"}
    assert names(labelled, plain) == everything - {"sfid", "accuracy", "variety_min"}
    assert names(plain, labelled) == everything - {"sfid", "variety_min"}
    manifolds = {"precision", "recall", "density", "coverage"}
    assert names(few, labelled) == everything - {"sfid"} - manifolds  # five neighbours need six
    assert names(labelled, few) == everything - {"sfid"}
    assert (
        names(plain, plain, InceptionFeatures("random:0"))
        == {"fid", "sfid", "is", "is_std", "kid", "kid_std"} | manifolds
    )


@pytest.mark.parametrize(
    "asked, message",
    [
        ("fjd", "there is no metric 'fjd'; there are fid, sfid, texture, is, is_std, kid"),
        ("sfid", r"sfid cannot be measured: ImageClassifier \(.*\) gives no spatial features, only pooled"),
        ("recall", "recall cannot be measured: it needs at least 4 samples, and fake has 3"),
        ("coverage", "coverage cannot be measured: it needs at least 4 samples"),
        ("variety_min", "variety_min .* the class of each of the real images, which real does not have"),
    ],
)
def test_what_was_asked_for_is_refused_by_name(extractor, asked, message):
    real, fake = Side.of(image_set(30, 0, "real", labelled=False)), Side.of(image_set(3, 0, "fake"))
    with pytest.raises(ValueError, match=message):
        chosen(extractor, real, fake, ["fid", asked])
    assert [metric.numbers for metric in chosen(extractor, real, fake, ["kid", "fid"])] == [
        ("fid",),
        ("kid", "kid_std"),
    ]


def test_accuracy_needs_a_network_that_knows_the_labels():
    side = Side.of(image_set(30, 0, "real"))
    with pytest.raises(ValueError, match="accuracy .* inception .* does not know the classes"):
        chosen(InceptionFeatures("random:0"), side, side, ["accuracy"])


def test_counts_that_bias_numbers_are_told(extractor):
    def cautions(num_real, num_fake):
        real, fake = Side.of(image_set(num_real, 0, "real")), Side.of(image_set(num_fake, 0, "fake"))
        return [line for metric in chosen(extractor, real, fake) for line in metric.cautions(extractor, real, fake)]

    few = "\n".join(cautions(50, 8))
    assert "fid: 8 samples leave the covariance of 8 features singular" in few
    assert "fid of 50 real images is biased upwards" in few and "is of 8 samples" in few
    assert "8 samples against 50 real images compare at the same two counts only" in few
    assert cautions(10_000, 10_000) == []


def test_different_images_with_the_same_features_are_refused(extractor):
    extractor = ClassifierFeatures(extractor.weights, 8)
    for parameter in extractor.network.parameters():
        parameter.zero_()
    with pytest.raises(ValueError, match="the same features for different images of real"):
        extract(extractor, image_set(30, 0, "real"), Needs(points=frozenset({"pooled"})))


def memory(count, num_features):
    """Peaks in bytes, before and after `count` images on either side."""
    process = Forked(measure_memory.main, count, num_features)
    output = process.finish()
    assert process.returncode == 0, output
    numbers, before, after = output.splitlines()[-1].split()
    assert int(numbers) == 13
    return int(before), int(after)


@pytest.mark.integration
def test_memory_holds_features_and_no_matrix_of_all_distances():
    before, after = memory(10_000, 128)
    assert after - before < 10_000**2 * 8 / 2


@pytest.mark.slow
def test_fifty_thousand_images_of_inception_fit_into_4_gib():
    assert memory(50_000, 2048)[1] < 4 * 2**30
