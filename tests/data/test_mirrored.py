"""Whether left and right mean something."""

import numpy as np
import pytest

from scalear.data.mirrored import MEANS_SOMETHING, told_from_mirrored


def images(count: int, size: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (count, size, size, 3)).astype(np.uint8)


def test_noise_is_not_told_and_a_bright_side_is():
    noise, labels = images(400), np.zeros(400, np.int64)
    assert told_from_mirrored(noise, labels) == pytest.approx(0.5, abs=0.1)
    lit = noise.copy()
    lit[:, 4:8, 2:6] += 50
    assert told_from_mirrored(lit, labels) > 0.9
    some = np.where((np.arange(400) % 2 == 0)[:, None, None, None], lit, lit[:, :, ::-1])
    assert told_from_mirrored(some, labels) < MEANS_SOMETHING  # as many face either way


def test_each_class_has_a_mean_of_its_own():
    arrows = images(200)
    arrows[:100, 8:12, 2:8] += 50
    arrows[100:, 8:12, 12:18] += 50
    assert told_from_mirrored(arrows, np.repeat([0, 1], 100)) > 0.9
    assert told_from_mirrored(arrows, np.full(200, -1)) < MEANS_SOMETHING


def test_symmetric_and_single_images_tell_nothing():
    grey = np.full((10, 8, 8, 1), 100, np.uint8)
    assert told_from_mirrored(grey, np.zeros(10, np.int64)) == 0.5
    assert told_from_mirrored(images(3), np.arange(3)) == 0.5
