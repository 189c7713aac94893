import io
import math
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from scalear.data.index import DatasetIndex
from scalear.data.shards import ShardFile
from scalear.evaluation.classifier import ImageClassifier, save_classifier
from scalear.evaluation.evaluate import choose_metrics, default_metrics, evaluate_samples
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.feature_set import FeatureSet
from scalear.evaluation.image_set import ArraySet, SampleSet, ShardSet
from scalear.evaluation.images import save_samples
from scalear.evaluation.labels import class_variety
from scalear.evaluation.manifold import ManifoldMetrics
from scalear.evaluation.side import Side


def precision_recall(real, fake, k=3, block_size=512):
    real, fake = FeatureSet({"pooled": real}), FeatureSet({"pooled": fake})
    scores = ManifoldMetrics(k, block_size=block_size)(real, fake)
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


def test_precision_and_recall_equal_a_loop_for_any_block_size():
    real, fake = torch.randn(40, 3) + 50, 0.8 * torch.randn(30, 3) + 50.5

    def covered(points, manifold, k=3):
        radius = [sorted(math.dist(a, b) for b in manifold.tolist())[k] for a in manifold.tolist()]
        hit = [any(math.dist(p, m) <= r for m, r in zip(manifold.tolist(), radius)) for p in points.tolist()]  # noqa: B905
        return sum(hit) / len(hit)

    expected = covered(fake, real), covered(real, fake)
    for block_size in (1, 7, 1024):
        assert precision_recall(real, fake, block_size=block_size) == pytest.approx(expected)


def test_variety_per_class():
    real, label = torch.randn(400, 6, dtype=torch.float64), torch.arange(400) % 2
    shrunk = real.mean(0) + (real - real.mean(0)) * torch.where(label == 0, 0.25, 2.0)[:, None] + 7
    ratio = class_variety(real, label, shrunk, label, num_classes=3)
    assert ratio[:2].tolist() == pytest.approx([0.25, 2.0], rel=1e-6)
    assert ratio[2].isnan()  # no image of class 2
    with pytest.raises(ValueError, match="0..2"):
        class_variety(real, label, shrunk[:1], torch.tensor([3]), num_classes=3)


def image_set(count, seed, name, classes=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 80, (count, 16, 16, 1)) + 60 * labels[:, None, None, None]
    return ArraySet(images.astype(np.uint8), labels, name)


def test_real_images_come_from_shards_in_equal_shares(tmp_path):
    labels = [0, 0, 0, 0, 1, 1, 2, 0]
    with ShardFile(tmp_path / "train-0.tar") as shard:
        for place, label in enumerate(labels):
            stream = io.BytesIO()
            Image.fromarray(np.full((4, 4), place, np.uint8)).save(stream, format="PNG")
            shard.write(f"{place:03d}", {"png": stream.getvalue(), "cls": str(label).encode()})
    DatasetIndex("toys", "images", 4, 1, ["a", "b", "c"], {"train": [shard.result]}).save(tmp_path)

    whole = ShardSet(tmp_path, "train").load()
    assert whole.images.shape == (8, 4, 4, 1) and whole.labels.tolist() == labels and whole.labels.dtype == np.int64
    part = ShardSet(tmp_path, "train", 3).load()
    assert part.images[:, 0, 0, 0].tolist() == [0, 4, 6] and part.labels.tolist() == [0, 1, 2]
    # Class 2 has one image only: the first spare one fills the gap.
    assert ShardSet(tmp_path, "train", 6).load().images[:, 0, 0, 0].tolist() == [0, 1, 4, 5, 6, 2]
    assert "toys train" in whole.name and whole.name != part.name
    with pytest.raises(ValueError, match="holds 8"):
        ShardSet(tmp_path, "train", 9)
    (tmp_path / "train-0.tar").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="train-0.tar"):
        ShardSet(tmp_path, "train").load()


def test_every_set_comes_in_blocks_that_need_not_fit_in_memory(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1200, 64, 64, 3), np.uint8)  # 15 MB
    whole = ArraySet(images, np.arange(1200) % 3, "whole")
    save_samples(tmp_path / "samples.npz", images, whole.labels)
    with ShardFile(tmp_path / "train-0.tar") as shard:
        for place, image in enumerate(images):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, format="PNG", compress_level=0)
            shard.write(f"{place:04d}", {"png": stream.getvalue(), "cls": b"%d" % (place % 3)})
    DatasetIndex("toys", "images", 64, 3, ["a", "b", "c"], {"train": [shard.result]}).save(tmp_path)

    sets = {2: SampleSet(tmp_path / "samples.npz", num_classes=2), 3: ShardSet(tmp_path, "train", 1200)}
    tracemalloc.start()
    for num_classes, images in sets.items():
        assert len(images) == 1200
        for block, expected in zip(images.blocks(50), whole.blocks(50), strict=True):
            assert np.array_equal(block.images, expected.images) and block.labels.dtype == np.int64
            assert np.array_equal(block.labels, np.where(expected.labels < num_classes, expected.labels, -1))
    assert tracemalloc.get_traced_memory()[1] < 6e6
    tracemalloc.stop()


def test_evaluate_samples_on_copies_noise_and_collapse(tmp_path):
    torch.manual_seed(0)
    save_classifier(tmp_path / "classifier.safetensors", ImageClassifier(num_classes=3, widths=(4, 6, 8)), {})
    extractor = ClassifierFeatures(str(tmp_path / "classifier.safetensors"), num_features=8)
    real, other = image_set(90, 0, "val"), image_set(90, 1, "train")
    reference, floor = Side.of(real), Side.of(other)
    metrics = choose_metrics(default_metrics(), extractor, reference, reference)
    copies = evaluate_samples(reference, reference, extractor, metrics, floor)
    assert copies["fid"] == pytest.approx(0, abs=1e-6) and copies["fid_floor"] > 1e-7
    assert copies["precision"] == copies["recall"] == copies["variety_min"] == 1.0

    collapsed = Side.of(ArraySet(real.images[real.labels], real.labels, "one image per class"))
    scores = evaluate_samples(collapsed, reference, extractor, metrics, floor, batch_size=32)
    assert scores["fid"] > scores["fid_floor"] == pytest.approx(copies["fid_floor"], rel=1e-6)
    assert scores["variety_min"] == pytest.approx(0, abs=1e-6) and scores["recall"] < 0.2
    assert 0 <= scores["accuracy"] <= 1
    with pytest.raises(ValueError, match="as many"):
        evaluate_samples(reference, reference, extractor, metrics, Side.of(image_set(80, 1, "train")))
