"""Sets of 8-bit images with their classes, generated or real, that are read in blocks: they need not fit in memory."""

import itertools
import math
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalear.data.index import DatasetIndex
from scalear.data.reader import ImageShard, open_shard
from scalear.evaluation.images import check_sample_file


class Block(NamedTuple):
    """Consecutive images of a set."""

    images: NDArray[np.uint8]
    """(B, H, W, C), grey or RGB."""
    labels: NDArray[np.int64]
    """(B,); -1 where there is no class."""


class ImageSet(ABC):
    """Images with classes, in an order of their own."""

    name: str
    """What they are, for tables."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def blocks(self, size: int) -> Iterator[Block]:
        """All images, `size` at a time; the last block may be smaller.

        Raises:
            ValueError: A file is broken.
        """

    def load(self) -> "ArraySet":
        """All images in memory."""
        return ArraySet(*next(self.blocks(len(self))), self.name)


@dataclass(frozen=True)
class ArraySet(ImageSet):
    """Images in memory.

    Attributes:
        images: uint8 (N, H, W, C), grey or RGB.
        labels: int64 (N,); -1 where there is no class.
        name: What they are, for tables.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def blocks(self, size: int) -> Iterator[Block]:
        for start in range(0, len(self), size):
            yield Block(self.images[start : start + size], self.labels[start : start + size])


class SampleSet(ImageSet):
    """The samples in an `.npz` file of ADM's layout; see `scalear.evaluation.images.save_samples`.

    Args:
        path: The file.
        num_classes: Classes of the model that was sampled; greater labels (the null class) become -1.

    Raises:
        ValueError: It is missing or no sample set.
    """

    def __init__(self, path: str | Path, num_classes: int | None = None) -> None:
        check_sample_file(path)
        self.name = Path(path).name
        self._path = path
        with np.load(path) as archive:
            self._labels = archive["arr_1"].astype(np.int64)
        if num_classes is not None:
            self._labels[self._labels >= num_classes] = -1

    def __len__(self) -> int:
        return len(self._labels)

    def blocks(self, size: int) -> Iterator[Block]:
        with zipfile.ZipFile(self._path) as archive, archive.open("arr_0.npy") as file:
            shape = self._image_shape(file)
            for start in range(0, len(self), size):
                labels = self._labels[start : start + size]
                content = file.read(len(labels) * math.prod(shape))
                yield Block(np.frombuffer(content, np.uint8).reshape(-1, *shape), labels)

    def _image_shape(self, file: BinaryIO) -> tuple[int, ...]:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
        if dtype != np.uint8 or len(shape) != 4 or fortran_order or len(self) != shape[0]:
            raise ValueError(
                f"{self._path} holds {dtype} images of shape {shape} (Fortran order: {fortran_order}) and {len(self)} "
                "labels, must be uint8 (N, H, W, C) and N"
            )
        return shape[1:]


class ShardSet(ImageSet):
    """Real images of a dataset, always the same ones, without augmentation.

    Args:
        data_dir: Dataset of images.
        split: Such as "train".
        count: Take the first so many in the order of the shards, each class filling its equal share first; by
            default all.

    Raises:
        ValueError: The split has too few images.
    """

    def __init__(self, data_dir: str | Path, split: str, count: int | None = None) -> None:
        index = DatasetIndex.load(data_dir)
        available = index.num_samples(split)
        self._count = available if count is None else count
        if index.kind != "images" or not 0 < self._count <= available:
            raise ValueError(
                f"need {self._count} images of {split!r} in {data_dir}, which holds {available} {index.kind}"
            )
        which = "all" if self._count == available else f"first {self._count:,}, class by class,"
        self.name = f"{which} of {index.name} {split}"
        self._data_dir = data_dir
        self._index = index
        self._split = split
        self._share = -(-self._count // index.num_classes) if count is not None and index.num_classes else available

    def __len__(self) -> int:
        return self._count

    def blocks(self, size: int) -> Iterator[Block]:
        # The spare images are needed only where a class is too small for its share: then the shards are read again.
        chosen = itertools.chain(self._chosen(spare=False), self._chosen(spare=True))
        chosen = itertools.islice(chosen, self._count)
        while batch := list(itertools.islice(chosen, size)):
            samples = [shard[number] for shard, number in batch]
            yield Block(np.stack([sample.image for sample in samples]), np.array([sample.label for sample in samples]))

    def _chosen(self, spare: bool) -> Iterator[tuple[ImageShard, int]]:
        """Shard and place of the images within their class's share, or of those beyond it."""
        seen = Counter()
        for shard in self._index.shards(self._split):
            opened = open_shard(self._data_dir, self._index, shard)
            for number in range(len(opened)):
                label = opened.label(number)
                seen[label] += 1
                if (seen[label] > self._share) == spare:
                    yield opened, number
