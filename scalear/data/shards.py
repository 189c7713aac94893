"""Tar shards: written atomically and reproducibly, read member by member."""

import contextlib
import gzip
import hashlib
import io
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


class HashingReader:
    """A stream that remembers length and SHA-256 of all that was read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.num_bytes = 0
        self._stream = stream
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._digest.update(content)
        self.num_bytes += len(content)
        return content

    def sha256(self) -> str:
        """Checksum of the whole stream; reads what is left of it."""
        while self.read(1 << 20):
            pass
        return self._digest.hexdigest()


def read_samples(stream: BinaryIO | HashingReader) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members (extension to content) of each sample or block in a tar stream, compressed or not.

    Raises:
        ValueError: A member comes twice, or has no extension.
        Exception: Whatever tarfile and gzip raise on broken bytes.
    """
    current, members = None, {}
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for info in tar:
            if not info.isfile():
                continue
            folder, _, base = info.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if not dot:
                raise ValueError(f"member {info.name!r} has no extension")
            if key != current:
                if current is not None:
                    yield current, members
                current, members = key, {}
            if extension in members:
                raise ValueError(f"member {info.name!r} comes twice")
            members[extension] = tar.extractfile(info).read()
    if current is not None:
        yield current, members


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
