"""Random access to the samples of tar shards: each shard is opened once and then indexed, not streamed."""

import bisect
import gzip
import hashlib
import io
import itertools
import json
import mmap
import tarfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from webdataset import gopen
from webdataset.tariterators import base_plus_ext

from scalear.data.imaging import IMAGE_EXTENSIONS
from scalear.data.index import DatasetIndex, LatentInfo, Shard, shard_url
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
        members: Files of each sample by extension.
        index: What the samples must look like.
    """

    def __init__(self, members: dict[str, dict[str, memoryview]], index: DatasetIndex) -> None:
        self._samples = list(members.items())
        self._size = (index.image_size, index.image_size)
        self._mode = {1: "L", 3: "RGB"}[index.image_channels]
        self._num_classes = index.num_classes

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> ImageSample:
        """Decode a sample.

        Raises:
            BrokenSampleError: It has no image, no valid label, or cannot be decoded.
        """
        key, members = self._samples[number]
        try:
            content = next(members[extension] for extension in members if extension.lower() in IMAGE_EXTENSIONS)
            with Image.open(io.BytesIO(content)) as image:
                if image.size != self._size:
                    raise ValueError(f"size {image.size}, the index says {self._size}")
                pixels = np.asarray(image.convert(self._mode))
            label = int(bytes(members["cls"])) if self._num_classes else -1
        except StopIteration:
            raise BrokenSampleError(f"sample {key!r} has no image, only {sorted(members)}") from None
        except KeyError:
            raise BrokenSampleError(f"sample {key!r} has no label (.cls), but the dataset has classes") from None
        except Exception as error:  # decoders raise nearly anything on broken bytes
            raise BrokenSampleError(f"sample {key!r} cannot be read: {type(error).__name__}: {error}") from error
        if self._num_classes and not 0 <= label < self._num_classes:
            raise BrokenSampleError(f"sample {key!r} has label {label}, the dataset has {self._num_classes} classes")
        return ImageSample(pixels.reshape(*pixels.shape[:2], -1), label, key)


class LatentShard:
    """Latents of a shard: blocks of arrays that are used where they lie, without a copy.

    Args:
        members: Files of each block by extension.
        latents: What the arrays must look like.
    """

    def __init__(self, members: dict[str, dict[str, memoryview]], latents: LatentInfo) -> None:
        self._blocks = [_LatentBlock.read(key, files, latents) for key, files in members.items()]
        self._block_size = latents.block_size
        if any(len(block.keys) != latents.block_size for block in self._blocks[:-1]):
            raise ValueError(f"a block before the last has not {latents.block_size} samples")

    def __len__(self) -> int:
        return sum(len(block.keys) for block in self._blocks)

    def __getitem__(self, number: int) -> LatentSample:
        number, row = divmod(number, self._block_size)
        block = self._blocks[number]
        return LatentSample(block.moments[row], block.flipped[row], block.labels[row], block.keys[row])


class _LatentBlock(NamedTuple):
    moments: np.ndarray
    flipped: np.ndarray
    labels: list[int]
    keys: list[str]

    @classmethod
    def read(cls, key: str, files: dict[str, memoryview], latents: LatentInfo) -> "_LatentBlock":
        if missing := {"moments.npy", "flipped.npy", "labels.npy", "keys.json"} - files.keys():
            raise ValueError(f"block {key!r} lacks {sorted(missing)}")
        keys = json.loads(bytes(files["keys.json"]))
        shape = (len(keys), *latents.moments_shape)
        return cls(
            _array(files["moments.npy"], shape, latents.dtype),
            _array(files["flipped.npy"], shape, latents.dtype),
            _array(files["labels.npy"], shape[:1], "int64").tolist(),
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
        try:
            return self._shard(number)[sample - self._ends[number] + shard.num_samples]
        except BrokenSampleError as error:
            raise BrokenSampleError(f"shard {shard.name}: {error}") from error

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
        members = _members(_content(shard_url(directory, shard), shard, cache_dir))
        opened = ImageShard(members, index) if index.latents is None else LatentShard(members, index.latents)
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


def _content(url: str, shard: Shard, cache_dir: str | None) -> mmap.mmap | bytes:
    """Bytes of the uncompressed tar: mapped from a local file, or in memory."""
    if "://" not in url and url.endswith(".tar"):
        return _map(url)
    cached = None if cache_dir is None else Path(cache_dir) / f"{shard.sha256}.tar"
    if cached is not None and cached.exists():
        return _map(cached)
    with gopen(url) as stream:
        content = stream.read()
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise ValueError("its SHA-256 is not the one in the index")
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    if cached is None:
        return content
    write_bytes(cached, content)  # several workers may fetch it at once
    return _map(cached)


def _map(path: str | Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _members(content: mmap.mmap | bytes) -> dict[str, dict[str, memoryview]]:
    """Files of a tar by sample key and extension, as webdataset groups them."""
    members: dict[str, dict[str, memoryview]] = {}
    view = memoryview(content)
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for info in tar:
            if not info.isfile():
                continue
            key, extension = base_plus_ext(info.name)
            end = info.offset_data + info.size
            if key is None or extension in members.setdefault(key, {}):
                raise ValueError(f"member {info.name!r} comes twice or has no extension")
            if end > len(content):
                raise ValueError(f"it ends within member {info.name!r}")
            members[key][extension] = view[info.offset_data : end]
    return members


def _array(content: memoryview, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array of an .npy file, without a copy."""
    stream = io.BytesIO(content[:1024])
    if (version := np.lib.format.read_magic(stream)) != (1, 0):
        raise ValueError(f".npy format {version}, expected (1, 0)")
    found_shape, fortran_order, found_dtype = np.lib.format.read_array_header_1_0(stream)
    if found_shape != shape or found_dtype != np.dtype(dtype) or fortran_order:
        raise ValueError(f"array of shape {found_shape} and type {found_dtype}, the index says {shape} and {dtype}")
    return np.frombuffer(content, found_dtype, offset=stream.tell()).reshape(shape)
