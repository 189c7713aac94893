"""Two halves of a set of images: one to choose by, one to tell what the choice is worth."""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scalear.evaluation.image_set import Block, ImageSet


@dataclass(frozen=True)
class HalfSet(ImageSet):
    """One of each two neighbours in a set, drawn at random; the other half has the other one.

    So both halves have classes alike, also where images are in the order of their classes, or classes take turns. The
    last image of an odd number is in neither.

    Attributes:
        whole: The set.
        half: Which of the two.
    """

    whole: ImageSet
    half: Literal[0, 1]
    labels: NDArray[np.int64] | None = dataclasses.field(init=False, default=None)

    @property
    def name(self) -> str:
        return f"half {self.half + 1} of {self.whole.name}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.whole.image_shape

    @property
    def labelled(self) -> bool:
        return self.whole.labelled

    def __len__(self) -> int:
        return len(self.whole) // 2

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.whole.fingerprint()} {self.half}".encode()).hexdigest()

    def blocks(self, size: int, rows: range | None = None) -> Iterator[Block]:
        rows = range(len(self)) if rows is None else rows
        second_N = np.random.default_rng(0).integers(2, size=len(self)) ^ self.half
        pairs = self.whole.blocks(2 * size, range(2 * rows.start, 2 * rows.stop))
        for start, (images, labels) in zip(range(rows.start, rows.stop, size), pairs, strict=True):
            own = 2 * np.arange(len(labels) // 2) + second_N[start : start + len(labels) // 2]
            yield Block(images[own], labels[own])
