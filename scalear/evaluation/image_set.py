"""Sets of 8-bit images with their classes, generated or real, that are read in blocks: they need not fit in memory."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scalear.data.decoding import open_image
from scalear.data.image_tree import find_images
from scalear.data.imaging import standardise
from scalear.data.index import INDEX_NAME, DatasetIndex
from scalear.data.reader import ImageShard, open_shard
from scalear.evaluation.images import open_sample_file, stored_origin


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
    image_shape: tuple[int, int, int]
    """H, W, C."""
    labelled: bool
    """Whether every image has a class."""
    labels: NDArray[np.int64] | None
    """(N,), where they are known before the images are read; -1 where there is no class."""
    origin: Mapping[str, Any] = MappingProxyType({})
    """Of samples, as far as it is known: weights and settings that they follow from, by dotted names."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the files that the images come from."""

    @abstractmethod
    def blocks(self, size: int, rows: range | None = None) -> Iterator[Block]:
        """Images in their order, `size` at a time; the last block may be smaller.

        Args:
            size: Images of a block.
            rows: Places of those that are wanted, without gaps; None for all.

        Raises:
            ValueError: A file is broken.
        """

    def first(self, count: int) -> "ImageSet | None":
        """So many of these images; None where there are fewer, or the set is read as a whole only."""
        return None

    def others(self, count: int) -> "ImageSet | None":
        """So many images of the same dataset that are not among these; None where fewer are known."""
        return None

    def load(self) -> "ArraySet":
        """All images in memory."""
        return ArraySet(*next(self.blocks(len(self))), self.name)

    def _slices(self, size: int, rows: range | None) -> Iterator[slice]:
        """Where blocks lie."""
        rows = range(len(self)) if rows is None else rows
        return (slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size))


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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    @property
    def labelled(self) -> bool:
        return bool((self.labels >= 0).all())

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest()

    def blocks(self, size: int, rows: range | None = None) -> Iterator[Block]:
        for block in self._slices(size, rows):
            yield Block(self.images[block], self.labels[block])


class SampleSet(ImageSet):
    """The images in an `.npz` file of ADM's layout, samples or real ones; see `scalear.evaluation.images.save_samples`.

    Args:
        path: The file: `arr_0` uint8 (N, H, W, C); `arr_1` (N,), the classes, may be missing.
        num_classes: Classes of the model that was sampled; greater labels (the null class) become -1.
        count: Take the first so many, no more than there are; by default all.

    Raises:
        ValueError: It is missing or no sample set.
    """

    def __init__(self, path: str | Path, num_classes: int | None = None, count: int | None = None) -> None:
        self.name = Path(path).name if count is None else f"first {count:,} of {Path(path).name}"
        self._path = path
        with open_sample_file(path) as archive, self._images() as (_, shape):
            labels = archive["arr_1"] if "arr_1" in archive else np.full(shape[0], -1)
        if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{path} holds {shape[0]} images, but {labels.dtype} labels of shape {labels.shape}")
        self.image_shape = shape[1:]
        self.labels = labels[:count].astype(np.int64)
        if num_classes is not None:
            self.labels[self.labels >= num_classes] = -1
        self.labelled = bool((self.labels >= 0).all())
        self.origin = _origin(path)

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "SampleSet | None":
        return SampleSet(self._path, count=count) if count <= len(self) else None

    def fingerprint(self) -> str:
        return _sha256([self._path])

    def blocks(self, size: int, rows: range | None = None) -> Iterator[Block]:
        bytes_each = math.prod(self.image_shape)
        with self._images() as (file, _):
            file.seek(bytes_each * (rows.start if rows else 0), os.SEEK_CUR)
            for block in self._slices(size, rows):
                labels = self.labels[block]
                content = file.read(len(labels) * bytes_each)
                yield Block(np.frombuffer(content, np.uint8).reshape(len(labels), *self.image_shape), labels)

    @contextlib.contextmanager
    def _images(self) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
        """The bytes of all images, to be read in order, and their shape (N, H, W, C)."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open("arr_0.npy") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran_order, dtype = read(file)
                if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not all(shape) or fortran_order:
                    raise ValueError(
                        f"{self._path} holds {dtype} images of shape {shape} (Fortran order: {fortran_order}), must be "
                        "uint8 (N, H, W, 1 or 3)"
                    )
                yield file, shape
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self._path} is damaged ({error}): write or copy it again") from error


class FolderSet(ImageSet):
    """The images below a folder, without classes, in the order of their paths; numbers count by their value.

    Grey if all files are, else RGB.

    Args:
        folder: Its subfolders count too.

    Raises:
        ValueError: There are no images, of several sizes, or a file is none.
    """

    labelled, labels = False, None

    def __init__(self, folder: str | Path) -> None:
        self.name = str(folder)
        self._paths = [Path(path) for path in sorted(find_images(str(folder)), key=_by_numbers)]
        sizes, modes = zip(*map(_header, self._paths), strict=True)
        (width, height), _ = Counter(sizes).most_common(1)[0]
        odd = next((place for place, size in enumerate(sizes) if size != (width, height)), None)
        if odd is not None:
            raise ValueError(
                f"{folder} holds images of {len(set(sizes))} sizes: most are {width}x{height}, {self._paths[odd].name} "
                f"is {sizes[odd][0]}x{sizes[odd][1]} pixels; make one size of them, as `scalear data pack` does"
            )
        self.image_shape = (height, width, 1 if set(modes) <= {"1", "L"} else 3)

    def __len__(self) -> int:
        return len(self._paths)

    def fingerprint(self) -> str:
        return _sha256(self._paths)

    def blocks(self, size: int, rows: range | None = None) -> Iterator[Block]:
        for block in self._slices(size, rows):
            images = [self._image(path) for path in self._paths[block]]
            yield Block(np.stack(images), np.full(len(images), -1))

    def _image(self, path: Path) -> NDArray[np.uint8]:
        *_, channels = self.image_shape
        try:
            array = np.asarray(standardise(open_image(path.read_bytes()), channels))
        except Exception as error:  # decoders raise nearly anything on broken bytes
            raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
        return array.reshape(self.image_shape)


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
        self.image_shape = (index.image_size, index.image_size, index.image_channels)
        self.labelled, self.labels = index.num_classes > 0, None
        which = "all" if self._count == available else f"first {self._count:,}, class by class,"
        self.name = f"{which} of {index.name} {split}"
        self._data_dir = data_dir
        self._index = index
        self._split = split
        self._share = -(-self._count // index.num_classes) if count is not None and index.num_classes else available

    def __len__(self) -> int:
        return self._count

    def others(self, count: int) -> "ShardSet | None":
        """Of the largest other split."""
        index = self._index
        other = max(index.splits.keys() - {self._split}, key=index.num_samples, default=None)
        has_enough = other is not None and count <= index.num_samples(other)
        return ShardSet(self._data_dir, other, count) if has_enough else None

    def fingerprint(self) -> str:
        hashes = [shard.sha256 for shard in self._index.shards(self._split)]
        return hashlib.sha256(" ".join([*hashes, str(self._count)]).encode()).hexdigest()

    def blocks(self, size: int, rows: range | None = None) -> Iterator[Block]:
        # The spare images are needed only where a class is too small for its share: then the shards are read again.
        chosen = itertools.chain(self._chosen(spare=False), self._chosen(spare=True))
        rows = range(self._count) if rows is None else rows
        chosen = itertools.islice(chosen, rows.start, rows.stop)
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


def has_splits(place: str) -> bool:
    """Whether it is a folder of shards."""
    return Path(place, INDEX_NAME).is_file()


def image_set(place: str, split: str) -> ImageSet:
    """The images that a command is pointed at.

    Args:
        place: An `.npz` file of ADM's layout, a folder of images, or one of shards.
        split: Of the shards; of no account elsewhere.

    Raises:
        ValueError: It is nothing of the kind.
    """
    path = Path(place)
    if has_splits(place):
        return ShardSet(path, split)
    if path.is_dir():
        return FolderSet(path)
    if not path.exists():
        raise ValueError(f"there is nothing at {place}: name an .npz file, a folder of images, or one of shards")
    return SampleSet(path)


def _origin(path: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(stored_origin(path))
    except ValueError:  # it says nothing
        return {}
    return found if isinstance(found, dict) else {}


def _by_numbers(path: str) -> list[tuple[int, str]]:
    """A key that sorts 10.png after 9.png."""
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", path)]


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height, and mode, without decoding; of a PNG also whether it is whole."""
    try:
        with Image.open(path) as image:
            image.verify()
            return image.size, image.mode
    except Exception as error:  # Pillow raises nearly anything on broken bytes
        raise ValueError(f"{path} is no image that can be read: {error}") from error


def _sha256(paths: Iterable[str | Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
