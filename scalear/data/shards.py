"""Tar shards: written atomically and reproducibly, read member by member."""

import contextlib
import gzip
import hashlib
import io
import mmap
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from scalear.data.index import Shard
from scalear.files import atomic_file


class ShardFile:
    """A shard that exists completely or not at all; equal content gives equal bytes.

        with ShardFile(directory / "train-00000.tar") as shard:
            shard.write("some-key", {"png": png_bytes, "cls": b"3"})
        index_entry = shard.result

    Leaving the block normally forces the bytes to disk and renames the file into place; leaving it by an exception
    removes what was written.

    Args:
        path: Where the shard will be; compressed if the name ends in ".gz".
    """

    result: Shard
    """Name, sample count and checksum, once the shard is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_samples = 0

    def __enter__(self) -> "ShardFile":
        self._closing = contextlib.ExitStack()
        stream = self._hashed = _HashingWriter(self._closing.enter_context(atomic_file(self.path)))
        if self.path.suffix == ".gz":  # no name and no time in the header, or equal content would differ
            stream = self._closing.enter_context(gzip.GzipFile("", "wb", 9, stream, mtime=0))
        # Not webdataset's TarWriter: importing that imports torch, which a packing worker would wait for.
        self._tar = self._closing.enter_context(tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT))
        return self

    def write(self, key: str, members: dict[str, bytes], num_samples: int = 1) -> None:
        """Append the members `{key}.{extension}` of one sample, or of one block of `num_samples`."""
        for extension in sorted(members):
            info = tarfile.TarInfo(f"{key}.{extension}")  # its time and owner are 0
            info.size, info.mode = len(members[extension]), 0o444
            self._tar.addfile(info, io.BytesIO(members[extension]))
        self._num_samples += num_samples

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            with contextlib.suppress(OSError):  # a full disk fails again here; the first failure is the news
                self._closing.__exit__(error_type, error, traceback)
            return
        self._closing.close()
        self.result = Shard(self.path.name, self._num_samples, self._hashed.digest.hexdigest())


class _HashingWriter:
    """A stream that remembers the SHA-256 of all that was written to it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._stream = stream

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._stream.write(content)

    def flush(self) -> None:
        self._stream.flush()


Content = mmap.mmap | bytes
"""Of a shard: mapped from a local file, or in memory."""


def shard_content(url: str) -> Content:
    """A shard as it is stored.

    Raises:
        OSError: It cannot be read.
    """
    if "://" not in url:
        with open(url, "rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0  # which cannot be mapped
            return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    from webdataset import gopen  # here, because it imports torch, which help and packing would wait for

    with gopen(url) as stream:
        return stream.read()


def is_compressed(content: Content) -> bool:
    """Whether the tar must be unpacked before it can be read."""
    return content[:2] == b"\x1f\x8b"


def read_members(content: Content) -> Iterator[tuple[str, str, memoryview]]:
    """Key, extension and content of each member of an uncompressed tar that belongs to a sample.

    As WebDataset has it, the key is the path up to the first dot of the file's name; extensions are in small letters.
    Hidden files and those without an extension belong to no sample.

    Raises:
        ValueError: The tar ends within a member.
        tarfile.TarError: It is broken otherwise.
    """
    view = memoryview(content)
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for info in tar:
            folder, slash, name = info.name.removeprefix("./").rpartition("/")
            stem, dot, extension = name.partition(".")
            if not info.isfile() or not stem or not dot:
                continue
            end = info.offset_data + info.size
            if end > len(content):
                raise ValueError(f"it ends within member {info.name!r}")
            yield folder + slash + stem, extension.lower(), view[info.offset_data : end]


def read_samples(content: Content) -> dict[str, dict[str, memoryview]]:
    """Files of a tar by sample key and extension, in the order of the first members; others may lie anywhere.

    Raises:
        ValueError: A member comes twice, or the tar is broken.
        tarfile.TarError: It is broken otherwise.
    """
    samples: dict[str, dict[str, memoryview]] = {}
    for key, extension, member in read_members(gzip.decompress(content) if is_compressed(content) else content):
        if extension in samples.setdefault(key, {}):
            raise ValueError(f"sample {key!r} has two members {extension!r}")
        samples[key][extension] = member
    return samples


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
