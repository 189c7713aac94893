"""Whether samples are copies of training images."""

import numpy as np
import pytest
import torch
from torch import nn

from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ArraySet
from scalear.evaluation.neighbours import COPIES, find_neighbours, nearest


class Pixels(FeatureExtractor):
    """Features are the pixels themselves."""

    kind = "pixels"
    widths = {"pooled": 48}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__("random:0", 48)

    def _load(self) -> nn.Module:
        return nn.Identity()

    def check_channels(self, channels: int) -> None: ...

    def _features(self, image_BCHW):
        return {"pooled": image_BCHW.flatten(1).float()}


def image_set(count: int, seed: int) -> ArraySet:
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return ArraySet(images, np.zeros(count, np.int64), "noise")


def test_new_images_are_as_far_as_real_ones_and_copies_are_not():
    train, held_out, new = (image_set(count, seed) for count, seed in ((60, 0), (30, 1), (30, 2)))
    found = find_neighbours(new, train, held_out, Pixels(), shown=4, each=3)
    assert found.nearest == pytest.approx(1, abs=0.2)
    assert found.picture.shape == (2 * (4 * 6 + 2), 2 * (4 * 6 + 2), 3)
    noise = np.random.default_rng(3).integers(-3, 4, (30, 4, 4, 3))
    copied = (train.images[:30].astype(int) + noise).clip(0, 255).astype(np.uint8)
    for images in (copied, np.ascontiguousarray(copied[:, :, ::-1])):  # mirrored in training, perhaps
        found = find_neighbours(ArraySet(images, new.labels, "copies"), train, held_out, Pixels(), shown=1, each=1)
        assert found.nearest < 0.2 < COPIES
        sample, neighbour = found.picture[4:12, 4:12].astype(int), found.picture[4:12, 16:24].astype(int)
        assert abs(sample - neighbour).max() <= 3


def test_nearest_equals_brute_force_over_blocks():
    points_MF, known_NF = torch.randn(600, 5), torch.randn(40, 5)
    distance_ME, place_ME = nearest(points_MF, known_NF, 3)
    brute_MN = (points_MF[:, None] - known_NF[None]).norm(dim=2)
    torch.testing.assert_close(distance_ME, brute_MN.sort(dim=1).values[:, :3])
    assert (brute_MN.gather(1, place_ME) == brute_MN.sort(dim=1).values[:, :3]).float().mean() > 0.99
