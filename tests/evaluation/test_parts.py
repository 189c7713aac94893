"""Processes that share a set read each its own part."""

import io

import numpy as np
import pytest
from PIL import Image

from scalear.data.index import DatasetIndex
from scalear.data.shards import ShardFile
from scalear.evaluation.image_set import ArraySet, FolderSet, SampleSet, ShardSet
from scalear.evaluation.images import save_samples

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), np.uint8)


def write_shards(folder):
    with ShardFile(folder / "train-0.tar") as shard:
        for place, image in enumerate(IMAGES):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, format="PNG")
            shard.write(f"{place:04d}", {"png": stream.getvalue(), "cls": b"%d" % (place % 3)})
    DatasetIndex("toys", "images", 8, 3, ["a", "b", "c"], {"train": [shard.result]}).save(folder)
    return ShardSet(folder, "train")


def write_folder(folder):
    for place, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{place}.png")
    return FolderSet(folder)


def write_samples(folder):
    save_samples(folder / "samples.npz", IMAGES, np.arange(23) % 3)
    return SampleSet(folder / "samples.npz")


@pytest.mark.parametrize(
    "make", [write_shards, write_folder, write_samples, lambda folder: ArraySet(IMAGES, np.arange(23) % 3, "array")]
)
@pytest.mark.parametrize("start, stop", [(0, 23), (0, 10), (10, 20), (20, 23)])
def test_a_part_of_a_set_is_that_part_in_blocks(tmp_path, make, start, stop):
    blocks = list(make(tmp_path).blocks(4, range(start, stop)))
    expected = IMAGES[start:stop]
    assert [len(block.images) for block in blocks] == [
        len(expected[first : first + 4]) for first in range(0, len(expected), 4)
    ]
    assert np.array_equal(np.concatenate([expected[:0], *(block.images for block in blocks)]), expected)
