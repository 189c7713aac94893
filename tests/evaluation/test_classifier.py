import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scalear.evaluation.classifier import ImageClassifier, load_classifier, save_classifier
from scalear.evaluation.evaluate import evaluate_samples
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.feature_set import Needs, extract
from scalear.evaluation.fid import FrechetDistance
from scalear.evaluation.image_set import ArraySet, ShardSet
from scalear.evaluation.labels import ClassVariety
from scalear.evaluation.manifold import ManifoldMetrics
from scalear.evaluation.side import Side
from scalear.tensor_files import read_tensors

EMBEDDED = Path(__file__).parents[2] / "data" / "fashion-mnist"


@pytest.fixture(scope="module")
def extractor():
    return ClassifierFeatures(str(EMBEDDED / "classifier.safetensors"))


def test_shipped_classifier_knows_the_embedded_validation_images(extractor):
    seen = extract(extractor, ShardSet(EMBEDDED, "val"), Needs(points=frozenset({"logits"})))
    right = (seen.points["logits"].argmax(dim=1) == seen.labels).float().mean().item()
    assert right > 0.91
    record = json.loads(read_tensors(extractor.weights)[1]["record"])
    assert record["val_accuracy"] > 0.91 and len(record["class_names"]) == 10 and record["optimizer"]["lr"] > 0
    assert Path(extractor.weights).stat().st_size < 3e6


@pytest.mark.integration
def test_real_images_are_near_and_damaged_ones_far(extractor):
    val, train = (ShardSet(EMBEDDED, split, 1000).load() for split in ("val", "train"))
    noise = 25.5 * np.random.default_rng(0).standard_normal(train.images.shape)
    noisy = (train.images + noise).round().clip(0, 255).astype(np.uint8)
    metrics = [FrechetDistance(), ManifoldMetrics(), ClassVariety()]
    near = evaluate_samples(Side.of(train), Side.of(val), extractor, metrics)
    far = evaluate_samples(Side.of(ArraySet(noisy, train.labels, "noisy")), Side.of(val), extractor, metrics)
    assert near["fid"] < 0.05 * far["fid"]
    assert min(near["precision"], near["recall"]) > 0.8
    assert 0.8 < near["variety_min"] < 1.25


def test_weights_and_architecture_survive_the_file(tmp_path):
    classifier = ImageClassifier(image_channels=3, num_classes=4, image_size=8, widths=(4, 6)).eval()
    save_classifier(tmp_path / "deep" / "classifier.safetensors", classifier, {"steps": 3})
    loaded = load_classifier(tmp_path / "deep" / "classifier.safetensors")
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(loaded(image), classifier(image)) and not loaded.training
    assert torch.equal(loaded.head(loaded.features(image)), classifier(image))
    assert read_tensors(tmp_path / "deep" / "classifier.safetensors")[1]["record"] == '{"steps": 3}'


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "classifier.safetensors"
    with pytest.raises(ValueError, match="no classifier at .*train one"):
        load_classifier(path)
    save_classifier(path, ImageClassifier(1, 10, 32, widths=(4, 6)), {})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        load_classifier(path)
