"""Random access to the samples of tar shards: each shard is opened once and then indexed, not streamed."""

import bisect
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scalear.data.index import DatasetIndex, LatentInfo, Shard, shard_url
from scalear.data.samples import Members, SampleReader, encoded_image, has_image
from scalear.data.shards import Content, is_compressed, read_samples, shard_content
from scalear.files import write_bytes


class BrokenSampleError(ValueError):
    """A sample that cannot be used, in a shard that can be read."""


class ImageSample(NamedTuple):
    """A decoded image, uint8 (H, W, channels)."""

    image: np.ndarray
    label: int
    key: str


class LatentSample(NamedTuple):
    """Views into a shard: the moments of an image and of its mirror image, each (C, h, w)."""

    moments: np.ndarray
    flipped: np.ndarray
    label: int
    key: str


class ImageShard:
    """Images of a shard, in the order of their first members.

    Args:
        samples: Files of each sample by extension. Those of other tools may lack an image, and do not count then.
        index: What the samples must look like.
        name: Of the shard, for error messages.
    """

    def __init__(self, samples: dict[str, dict[str, memoryview]], index: DatasetIndex, name: str) -> None:
        self._name = name
        self._samples = [item for item in samples.items() if index.raw is None or has_image(item[1])]
        self._reader = SampleReader(index)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> ImageSample:
        """Decode a sample.

        Raises:
            BrokenSampleError: It has no image, no valid label, or cannot be decoded.
        """
        with self._named(number) as (key, members):
            return ImageSample(self._reader.image(members), self._reader.label(key, members), key)

    def label(self, number: int) -> int:
        """The label of a sample, -1 if there are no classes; decodes no image.

        Raises:
            BrokenSampleError: It has no valid one.
        """
        with self._named(number) as (key, members):
            return self._reader.label(key, members)

    def encoded(self, number: int) -> tuple[str, str, memoryview]:
        """Key of a sample, and extension and content of its image file.

        Raises:
            BrokenSampleError: It has no image.
        """
        with self._named(number) as (key, members):
            return key, *encoded_image(members)

    @contextlib.contextmanager
    def _named(self, number: int) -> Iterator[tuple[str, dict[str, memoryview]]]:
        key, members = self._samples[number]
        try:
            yield key, members
        except ValueError as error:
            raise BrokenSampleError(f"shard {self._name}: sample {key!r} {error}") from error
        except Exception as error:  # decoders raise nearly anything on broken bytes
            reason = f"{type(error).__name__}: {error}"
            raise BrokenSampleError(f"shard {self._name}: sample {key!r} cannot be read: {reason}") from error


class LatentShard:
    """Latents of a shard: blocks of arrays that are used where they lie, without a copy.

    Args:
        members: Files of each block by extension.
        latents: What the arrays must look like.
    """

    def __init__(self, members: dict[str, dict[str, memoryview]], latents: LatentInfo) -> None:
        self._blocks = []
        for key, files in members.items():
            try:
                self._blocks.append(LatentBlock.read(files, latents))
            except ValueError as error:
                raise ValueError(f"block {key}: {error}") from error
        self._block_size = latents.block_size
        if any(len(block.keys) != latents.block_size for block in self._blocks[:-1]):
            raise ValueError(f"a block before the last has not {latents.block_size} samples")

    def __len__(self) -> int:
        return sum(len(block.keys) for block in self._blocks)

    def __getitem__(self, number: int) -> LatentSample:
        number, row = divmod(number, self._block_size)
        block = self._blocks[number]
        return LatentSample(block.moments[row], block.flipped[row], block.labels[row], block.keys[row])


class LatentBlock(NamedTuple):
    """Several samples: views into the files that hold them, moments of the images and their mirror images."""

    labels: list[int]
    moments: np.ndarray
    flipped: np.ndarray
    keys: list[str]

    @classmethod
    def read(cls, files: Members, latents: LatentInfo) -> "LatentBlock":
        """The block of these files, none of which is copied.

        Args:
            files: By extension.
            latents: What the arrays must look like.

        Raises:
            ValueError: A file is missing, or not what it must be.
        """
        if missing := {"moments.npy", "flipped.npy", "labels.npy", "keys.json"} - files.keys():
            raise ValueError(f"has no {' and '.join(sorted(missing))} among its members {sorted(files)}")
        keys = json.loads(bytes(files["keys.json"]))
        if not isinstance(keys, list) or not 1 <= len(keys) <= latents.block_size:
            raise ValueError(f"keys.json must be a list of 1 to {latents.block_size} names")
        shape = (len(keys), *latents.moments_shape)
        return cls(
            _array(files, "labels.npy", shape[:1], "int64").tolist(),
            _array(files, "moments.npy", shape, latents.dtype),
            _array(files, "flipped.npy", shape, latents.dtype),
            keys,
        )


class ShardReader:
    """Samples of a split by their index; keeps the shards that were used last open.

    Args:
        directory: Of the dataset.
        index: Of the dataset.
        split: Name of the split.
        max_open: Shards to keep open. Compressed and remote shards lie in memory while open.
        cache_dir: Where to keep copies of compressed and remote shards; they are then mapped instead.
    """

    def __init__(
        self, directory: str, index: DatasetIndex, split: str, max_open: int, cache_dir: str | None = None
    ) -> None:
        self._directory = directory
        self._index = index
        self._shards = index.shards(split)
        self._ends = list(itertools.accumulate(shard.num_samples for shard in self._shards))
        self._max_open = max_open
        self._cache_dir = cache_dir
        self._open: OrderedDict[int, ImageShard | LatentShard] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, sample: int) -> ImageSample | LatentSample:
        """Read a sample.

        Raises:
            BrokenSampleError: The sample is unreadable; names it and its shard.
            ValueError: The shard is missing, truncated, corrupt or not what the index says; names it.
        """
        number = bisect.bisect_right(self._ends, sample)
        shard = self._shards[number]
        return self._shard(number)[sample - self._ends[number] + shard.num_samples]

    def _shard(self, number: int) -> ImageShard | LatentShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        opened = self._open[number] = open_shard(self._directory, self._index, self._shards[number], self._cache_dir)
        if len(self._open) > self._max_open:
            self._open.popitem(last=False)
        return opened


def open_shard(
    directory: str, index: DatasetIndex, shard: Shard, cache_dir: str | None = None
) -> ImageShard | LatentShard:
    """Open one shard of a dataset.

    Raises:
        ValueError: It is missing, truncated, corrupt or not what the index says; names it.
    """
    try:
        samples = read_samples(_content(shard_url(directory, shard), shard, cache_dir))
        opened = (
            ImageShard(samples, index, shard.name) if index.latents is None else LatentShard(samples, index.latents)
        )
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise ValueError(
            f"cannot read shard {shard.name} of {directory}: {error}. Restore the file; "
            f"`scalear data verify {directory}` names all that is broken"
        ) from error
    if len(opened) != shard.num_samples:
        raise ValueError(
            f"shard {shard.name} of {directory} holds {len(opened)} samples, its index says {shard.num_samples}: "
            "the shard is truncated or belongs to another index; write the dataset again"
        )
    return opened


def _content(url: str, shard: Shard, cache_dir: str | None) -> Content:
    """Of the uncompressed tar. Compressed and remote ones are compared with their checksum, for they are read whole."""
    cached = None if cache_dir is None else Path(cache_dir) / f"{shard.sha256}.tar"
    if cached is not None and cached.exists():
        return shard_content(str(cached))
    content = shard_content(url)
    if not is_compressed(content) and "://" not in url:
        return content
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise ValueError("its SHA-256 is not the one in the index")
    if is_compressed(content):
        content = gzip.decompress(content)
    if cached is None:
        return content
    write_bytes(cached, content)  # several workers may fetch it at once
    return shard_content(str(cached))


def _array(files: Members, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array of an .npy file, without a copy."""
    content = files[name]
    stream = io.BytesIO(content[:1024])
    if (version := np.lib.format.read_magic(stream)) != (1, 0):
        raise ValueError(f"{name} has .npy format {version}, must have (1, 0)")
    found_shape, fortran_order, found_dtype = np.lib.format.read_array_header_1_0(stream)
    if found_shape != shape or found_dtype != np.dtype(dtype) or fortran_order:
        order = " in Fortran order" * fortran_order
        raise ValueError(f"{name} is {found_dtype} {found_shape}{order}, must be {dtype} {shape}")
    return np.frombuffer(content, found_dtype, offset=stream.tell()).reshape(shape)
