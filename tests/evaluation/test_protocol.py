"""What stands beside numbers: what is to be known of them, and the line for a paper."""

import numpy as np
import pytest
import torch

from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.evaluate import choose_metrics, default_metrics
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.image_set import ArraySet
from scalear.evaluation.protocol import Protocol, sampling_words, short_count
from scalear.evaluation.side import Side
from scalear.evaluation.statistics import FeatureStatistics


@pytest.fixture
def extractor(tmp_path) -> ClassifierFeatures:
    save_classifier(tmp_path / "classifier.safetensors", ImageClassifier(1, 10, 32, widths=(4, 8)), {})
    return ClassifierFeatures(str(tmp_path / "classifier.safetensors"), num_features=8)


def images(count: int, labels=None, name: str = "images") -> Side:
    """Of no content: nobody looks at them."""
    labels = np.full(count, -1) if labels is None else labels
    return Side.of(ArraySet(np.broadcast_to(np.uint8(0), (count, 1, 1, 1)), labels, name))


def cautions(extractor, samples: Side, reference: Side) -> str:
    metrics = choose_metrics(default_metrics(), extractor, reference, samples)
    *found, network, last = Protocol(samples, reference, extractor, metrics).cautions()
    assert network.startswith(f"numbers by {extractor.name} compare with each other only")
    assert last == "there is no floor: no other real images, as many as samples, were at hand"
    assert Protocol(samples, reference, extractor, metrics, floor=reference).cautions() == [*found, network]
    return "\n".join(found)


def test_counts_that_are_too_small_are_told(extractor):
    assert cautions(extractor, images(50_000), images(50_000)) == ""
    few = cautions(extractor, images(2500), images(50_000))
    assert "fid of 2,500 samples is biased upwards" in few and "fid of 50,000" not in few
    assert "is of 2,500 samples, fewer than a split of 5,000, is biased downwards" in few
    assert "of 2,500 samples against 50,000 real images compare at the same two counts only" in few
    assert "the last split has 2,000 samples, the others 5,000" in cautions(extractor, images(12_000), images(9))
    fewer = cautions(extractor, images(8), images(500))
    assert "fid: 8 samples leave the covariance of 8 features singular" in fewer
    assert "fid of 500 real images is biased upwards" in fewer
    assert "kid takes subsets of 1,000, and one side has 8 images" in fewer
    statistics = FeatureStatistics(torch.zeros(8), torch.eye(8))
    alone = Side("adm.npz", None, {"pooled": statistics})
    assert cautions(extractor, images(50_000), alone) == ""  # nobody knows of how many images it is
    assert "fid of 2,500 samples is biased upwards" in cautions(extractor, images(2500), alone)


def test_classes_that_are_not_alike_or_not_in_turns_are_told(extractor):
    turns = np.arange(20_000) % 10
    assert cautions(extractor, images(20_000, turns), images(20_000, turns)) == ""
    drawn = np.random.default_rng(0).integers(0, 1000, 20_000)
    assert cautions(extractor, images(20_000, drawn), images(20_000, turns)) == ""
    ordered = cautions(extractor, images(20_000, np.sort(turns)), images(20_000, turns))
    assert "is takes splits of 5,000 samples in their order, and one has 3 of 10 classes" in ordered
    uneven = cautions(extractor, images(20_000, np.where(turns == 3, 7, turns)), images(20_000, turns))
    assert "class 7 has 4,000 of 20,000 samples, 1 classes before class 9 have none" in uneven


def test_the_line_has_the_numbers_of_the_field_and_what_is_known_of_the_rest(extractor):
    protocol = Protocol(images(50_000, name="samples"), images(50_000, name="val"), extractor, [])
    scores = {"fid": 3.614, "sfid": 5.2, "is": 290.25, "kid": 0.00123, "precision": 0.813, "recall": 0.604, "own": 1.0}
    line = protocol.line(scores | {"fid_low": 3.5, "fid_high": 3.7})
    assert line.startswith(
        "FID-50k 3.61 [3.50, 3.70], sFID 5.20, IS 290.25, KID 0.00123, P/R 0.81/0.60 "
        f"({extractor.name}, ref val, measured in float32 on "
    )
    table = protocol.table(scores | {"fid_low": 3.5, "fid_high": 3.7, "fid_floor": 0.5})
    assert table.splitlines()[0].split() == ["from", "to", "real", "images"]
    assert table.splitlines()[1].split() == ["fid", "3.614", "3.5", "3.7", "0.5"]
    assert table.splitlines()[7].split() == ["own", "1"]


def test_sampling_is_told_in_the_words_of_papers():
    flow = {
        "model.guidance.weight": 4.3,
        "model.sampling.method": "euler",
        "model.sampling.num_steps": 25,
        "model.sampling.grid": "flowar",
        "model.samples.seed": 0,
        "trainer.precision": "bf16-mixed",
        "weights": "step 7, saved at 1.5, averaged",
    }
    assert ", ".join(sampling_words(flow)) == "cfg 4.3, euler 25 flowar, EMA, seed 0, sampled in bf16-mixed"
    tokens = {"model.sampling.temperature": 0.9, "model.sampling.top_k": 900, "model.sampling.top_p": 1.0}
    assert sampling_words(tokens | {"weights": "step 7, saved at 1.5"}) == ["temperature 0.9", "top-k 900"]
    ddim = {"model.sampling.class_path": "scalear.diffusion.DDIM", "model.sampling.num_steps": 25}
    assert sampling_words(ddim) == ["DDIM 25"]
    assert sampling_words({}) == []


def test_counts_are_short():
    assert [short_count(count) for count in (50_000, 2000, 12, 0, 12_345)] == ["50k", "2k", "12", "0", "12345"]
