import io
import json

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from scalear.data.datamodule import ShardDataModule
from scalear.data.index import DatasetIndex
from scalear.data.shards import ShardFile
from scalear.draws import SeededDraws
from scalear.evaluation.classifier import ImageClassifier, classifier_record
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.tensor_files import read_tensors
from scalear.training.classifier_module import ClassifierModule
from scalear.training.classifier_targets import random_view
from scalear.training.optim import OptimizerSettings


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Dark and bright squares."""
    directory, rng, splits = tmp_path_factory.mktemp("shades"), np.random.default_rng(0), {}
    for split, count in (("train", 64), ("val", 20)):
        with ShardFile(directory / f"{split}-0.tar") as shard:
            for place in range(count):
                stream = io.BytesIO()
                pixels = rng.integers(0, 120, (8, 8)) + 130 * (place % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(stream, format="PNG")
                shard.write(f"{place:03d}", {"png": stream.getvalue(), "cls": str(place % 2).encode()})
        splits[split] = [shard.result]
    DatasetIndex("shades", "images", 8, 1, ["dark", "bright"], splits).save(directory)
    return directory


def trainer(directory):
    return lightning.Trainer(
        default_root_dir=directory,
        accelerator="cpu",
        max_steps=16,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )


def module(directory, num_classes=2):
    classifier = ImageClassifier(image_channels=1, num_classes=num_classes, image_size=8, widths=(4, 8))
    return ClassifierModule(classifier, OptimizerSettings(lr=1e-2), str(directory / "classifier.safetensors"))


def test_fit_exports_what_test_measures(shades, tmp_path):
    lightning.seed_everything(0)
    data = ShardDataModule(str(shades), batch_size=16)
    trainer(tmp_path).fit(module(tmp_path), datamodule=data)
    record = json.loads(read_tensors(tmp_path / "classifier.safetensors")[1]["record"])
    assert record["class_names"] == ["dark", "bright"] and record["steps"] == 16 and record["train_images"] == 64
    assert record["val_accuracy"] > 0.9 and record["checksum"] is None  # for the file is not beside its dataset
    # A fresh module measures the file, not its own random weights.
    (result,) = trainer(tmp_path).test(module(tmp_path), datamodule=ShardDataModule(str(shades), batch_size=16))
    assert result["test/accuracy"] == pytest.approx(record["val_accuracy"], abs=1e-4)


def test_another_dataset_is_refused(shades, tmp_path):
    with pytest.raises(ValueError, match="2 classes .* built for 10"):
        trainer(tmp_path).fit(module(tmp_path, num_classes=10), datamodule=ShardDataModule(str(shades), batch_size=16))


def test_without_classes_images_are_found_again(shades, tmp_path):
    lightning.seed_everything(0)
    data = ShardDataModule(str(shades), batch_size=16)
    trainer(tmp_path).fit(module(tmp_path, num_classes=0), datamodule=data)
    path = tmp_path / "classifier.safetensors"
    record = classifier_record(path)
    assert 0.1 < record["val_found_again"] <= 1 and "val_accuracy" not in record  # one in sixteen by chance
    extractor = ClassifierFeatures(str(path), num_features=8)
    assert set(extractor.widths) == {"pooled", "texture"}
    seen = extractor(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert {name: x.shape[1] for name, x in seen.items()} == extractor.widths
    assert "images found again, without labels, trained on shades" in extractor.title
    (result,) = trainer(tmp_path).test(module(tmp_path, num_classes=0), datamodule=data)
    assert result["test/found_again"] == pytest.approx(record["val_found_again"], abs=1e-4)


def test_views_are_parts_of_their_image_and_depend_on_the_sample_alone():
    image = torch.linspace(-1, 1, 16).expand(3, 2, 16, 16)
    streams = [(0, 5), (0, 6), (0, 7)]
    view = random_view(image, SeededDraws(streams), "first")
    alone = random_view(image[1:2], SeededDraws(streams[1:2]), "first")
    torch.testing.assert_close(view[1:2], alone)
    slope = (view[..., -4] - view[..., 3]) / (image[..., -4] - image[..., 3])  # of a crop that is enlarged, and toned
    assert view.shape == image.shape and 0.25 < slope.min() and slope.max() < 1.45
    torch.testing.assert_close(view[:, :, 3], view[:, :, 12])  # rows were all alike
    assert not torch.equal(view[0], view[1]) and not torch.equal(view[0, 0], view[0, 1])
