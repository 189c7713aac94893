import numpy as np
import pytest

from scalear.evaluation.halves import HalfSet
from scalear.evaluation.image_set import ArraySet


def numbered(labels):
    """Images that are known by their pixels: 0, 1 and so on."""
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 1), np.uint8)
    return ArraySet(images, np.array(labels), "val")


def taken(half, size, rows=None):
    return [int(pixel) for block in half.blocks(size, rows) for pixel in block.images[:, 0, 0, 0]]


def test_halves_share_no_image_and_leave_none_out():
    whole = numbered([0] * 101)
    first, second = (HalfSet(whole, half) for half in (0, 1))
    assert sorted(taken(first, 7) + taken(second, 7)) == list(range(100))
    assert len(first) == len(second) == 50 and taken(first, 7) not in ([*range(0, 100, 2)], [*range(1, 101, 2)])
    assert taken(first, 50) == taken(first, 7) and taken(first, 4, range(10, 33)) == taken(first, 50)[10:33]
    assert first.fingerprint() != second.fingerprint() and first.name == "half 1 of val"


@pytest.mark.parametrize("labels", [np.arange(200) // 20, np.arange(200) % 10], ids=["in order", "in turns"])
def test_both_halves_have_classes_alike(labels):
    for half in (0, 1):
        found = np.concatenate([block.labels for block in HalfSet(numbered(labels), half).blocks(30)])
        assert np.bincount(found, minlength=10).min() >= 5 and len(found) == 100
