"""What training cuts out of images, and evaluation."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import image_of, numbers, pixels
from PIL import Image

from scalear.data.datamodule import ShardDataModule


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """As ADM's `random_crop_arr` does it."""
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * side:
        picture = picture.resize([length // 2 for length in picture.size], Image.Resampling.BOX)
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))


def crops(data: ShardDataModule, num_samples: int) -> dict[int, tuple[int, torch.Tensor]]:
    """Number and image of samples by their place in the stream of training."""
    seen = {}
    while len(seen) < num_samples:
        for batch in data.train_dataloader():
            seen |= dict(zip(batch.position.tolist(), zip(numbers(batch), batch.inputs, strict=True), strict=True))
            data.position = batch.stream_end
    return seen


def places(image: np.ndarray, crop: np.ndarray) -> Iterator[tuple[int, int]]:
    windows = np.lib.stride_tricks.sliding_window_view(image, crop.shape)
    yield from zip(*np.nonzero((windows == crop).all((2, 3))), strict=True)


def test_crops_are_random_in_training_and_central_in_evaluation(images: Path):
    data = ShardDataModule(str(images), 4, random_crop=6, flip=False)
    for batch in data.val_dataloader():
        for number, image in zip(numbers(batch), batch.inputs, strict=True):
            np.testing.assert_array_equal(pixels(image), image_of(number)[1:7, 1:7])
    found = Counter(
        place for number, image in crops(data, 66).values() for place in places(image_of(number), pixels(image))
    )
    assert found.keys() == {(top, left) for top in range(3) for left in range(3)} and found.total() >= 66


@pytest.mark.parametrize("crop, fraction", [(5, 0.7), (5, 0.63), (4, 0.5), (7, 0.88), (8, 1.0)])
def test_crops_of_a_random_scale_are_adms(images: Path, crop: int, fraction: float):
    """Every side from that of the crop to what makes it the least part, and then every place."""
    data = ShardDataModule(str(images), 6, random_crop=crop, min_crop_fraction=fraction, flip=False)
    assert data.image_size == crop
    sides = range(crop, math.ceil(crop / fraction) + 1)
    found = [
        [(side, *place) for side in sides for place in places(resized(image_of(number), side), pixels(image))]
        for number, image in crops(data, 440).values()
    ]
    assert all(len(candidates) == 1 for candidates in found)
    drawn = Counter(candidate for (candidate,) in found)
    for side in sides:
        share = sum(count for place, count in drawn.items() if place[0] == side) / len(found)
        assert share == pytest.approx(1 / len(sides), abs=0.08)
        for axis in (1, 2):
            assert {place[axis] for place in drawn if place[0] == side} == set(range(side - crop + 1))


def test_crops_depend_on_seed_and_position_alone(images: Path):
    scale = {"random_crop": 5, "min_crop_fraction": 0.7}
    one = crops(ShardDataModule(str(images), 4, **scale), 44)
    for batch_size, num_workers in ((11, 0), (3, 2)):
        other = crops(ShardDataModule(str(images), batch_size, num_workers=num_workers, **scale), 44)
        for position in range(44):
            assert other[position][0] == one[position][0]
            assert torch.equal(other[position][1], one[position][1])
    another = crops(ShardDataModule(str(images), 4, seed=1, **scale), 44)
    assert not any(torch.equal(another[position][1], one[position][1]) for position in range(44))


def test_evaluation_sees_the_whole_image_where_training_crops_at_a_random_scale(images: Path):
    data = ShardDataModule(str(images), 4, random_crop=5, min_crop_fraction=0.7)
    for batch in data.val_dataloader():
        for number, image in zip(numbers(batch), batch.inputs, strict=True):
            np.testing.assert_array_equal(pixels(image), resized(image_of(number), 5))


@pytest.mark.parametrize(
    "kind, crop, fraction, message",
    [
        ("images", 9, None, "random_crop is 9, but .* holds images of images of side 8"),
        ("images", 5, 0.6, "up to 9, but .* holds images of side 8.* --image_size 9 or more, or set"),
        ("images", 8, 0.8, "up to 10, but .* holds images of side 8.* --image_size 10 or more, or set"),
        ("latents", 5, None, "random_crop is 5, but .* holds latents of images of side 8: only images can be cropped"),
        ("latents", 5, 0.8, "only images can be cropped, .* set data.min_crop_fraction to null, too"),
        ("images", None, 0.8, "min_crop_fraction is 0.8, must be .* with a data.random_crop, which is None"),
        ("images", 5, 1.2, r"min_crop_fraction is 1.2, must be in \(0, 1\]"),
        ("images", 5, 0.0, r"min_crop_fraction is 0.0, must be in \(0, 1\]"),
    ],
)
def test_what_cannot_be_cropped_is_refused(request, kind: str, crop: int | None, fraction: float | None, message: str):
    folder = request.getfixturevalue(kind)
    with pytest.raises(ValueError, match=message):
        ShardDataModule(str(folder), 4, random_crop=crop, min_crop_fraction=fraction).train_dataloader()
