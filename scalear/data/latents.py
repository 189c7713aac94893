"""Cached latents: blocks of samples in tar shards, so that reading one costs microseconds."""

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scalear.data.index import INDEX_NAME, DatasetIndex, LatentInfo, Shard
from scalear.data.shards import ShardFile

# {split}-{rank}-{number}.tar, as LatentShardWriter names them, and what ShardFile has not finished of one.
_SHARD_FILE = re.compile(r".+-\d{3,}-\d{5,}\.tar(\.\w+\.partial)?")


class LatentShardWriter:
    """Writes one rank's latents of one split; every shard is in place completely or not at all.

    Args:
        directory: Of the new dataset; made if needed.
        split: Name of the split.
        rank: Of this process; part of the file names.
        dtype: How moments are stored, `Tokenizer.moments_dtype`.
        block_size: Samples in a member.
        blocks_per_shard: Blocks in a file.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str,
        rank: int = 0,
        dtype: torch.dtype = torch.float16,
        block_size: int = 256,
        blocks_per_shard: int = 32,
    ) -> None:
        self._directory = Path(directory)
        if (self._directory / INDEX_NAME).exists():
            raise ValueError(f"{directory} holds a finished dataset; delete it or choose another folder")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._stem = f"{split}-{rank:03d}"
        self._dtype = dtype
        self._block_size = block_size
        self._blocks_per_shard = blocks_per_shard
        self._waiting: list[tuple[np.ndarray, np.ndarray, int, str]] = []
        self._shards: list[Shard] = []
        self._shard: ShardFile | None = None
        self._open = contextlib.ExitStack()
        self._num_blocks = 0

    def add(self, moments: Tensor, flipped: Tensor, labels: Tensor, keys: Sequence[str]) -> None:
        """Append samples.

        Args:
            moments: moments_BChw of the images.
            flipped: moments_BChw of the mirror images.
            labels: (B,), -1 where there is none.
            keys: Names of the samples.

        Raises:
            ValueError: A moment is not finite once it has the stored type.
        """
        stored = [part.detach().to("cpu", self._dtype) for part in (moments, flipped)]
        finite = torch.stack([part.isfinite().flatten(1).all(1) for part in stored]).all(0)
        if not finite.all():
            bad = [key for key, good in zip(keys, finite.tolist(), strict=True) if not good]
            raise ValueError(
                f"moments of {bad} are not finite as {self._dtype} (largest number {torch.finfo(self._dtype).max:g}); "
                "check the tokenizer's weights, or store float32 with its moments_dtype"
            )
        self._waiting += zip(*(part.numpy() for part in stored), labels.tolist(), keys, strict=True)
        while len(self._waiting) >= self._block_size:
            self._write_block()

    def close(self) -> list[Shard]:
        """Write what is left; returns the records of all shards, in order."""
        if self._waiting:
            self._write_block()
        self._close_shard()
        return self._shards

    def abort(self) -> None:
        """Remove the unfinished shard, after an error."""
        error = InterruptedError(f"{self._stem} was given up")
        self._open.__exit__(type(error), error, None)

    def _write_block(self) -> None:
        if self._shard is None:
            path = self._directory / f"{self._stem}-{len(self._shards):05d}.tar"
            self._shard = self._open.enter_context(ShardFile(path))
        block, self._waiting = self._waiting[: self._block_size], self._waiting[self._block_size :]
        moments, flipped, labels, keys = zip(*block, strict=True)
        members = {
            "moments.npy": _npy(np.stack(moments)),
            "flipped.npy": _npy(np.stack(flipped)),
            "labels.npy": _npy(np.array(labels, np.int64)),
            "keys.json": json.dumps(keys).encode(),
        }
        self._shard.write(f"block-{self._num_blocks:05d}", members, len(block))
        self._num_blocks += 1
        if self._num_blocks == self._blocks_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._open.close()
            self._shards.append(self._shard.result)
            self._shard, self._num_blocks = None, 0


def stray_shards(directory: Path) -> list[Path]:
    """What a killed run of any number of ranks left in a folder without an index.

    Raises:
        ValueError: A shard is there that holds something else, under a name that one of latents would take.
    """
    stray = [path for path in directory.glob("*.tar*") if _SHARD_FILE.fullmatch(path.name)]
    if others := [path for path in stray if _holds_others(path)]:
        raise ValueError(f"{others[0]} holds no latents: move it away, or choose another folder for the latents")
    return stray


def _holds_others(path: Path) -> bool:
    """Whether it is a whole shard of something else."""
    with contextlib.suppress(tarfile.ReadError), tarfile.open(path) as tar:
        first = tar.next()
        return first is not None and re.fullmatch(r"block-\d+\.\w+\.\w+", first.name) is None
    return False


def write_latent_index(
    directory: str | Path,
    source: DatasetIndex,
    latents: LatentInfo,
    shards_of_ranks: Sequence[Mapping[str, Sequence[Shard]]],
) -> DatasetIndex:
    """Write the index of a latent dataset, once all ranks have closed their shards. Called by one of them.

    Args:
        directory: Of the latent dataset.
        source: Index of the images; its `image_size` is that of what was encoded.
        latents: Who made the latents, and how they are stored.
        shards_of_ranks: For each rank the shards of each split, from `LatentShardWriter.close`.

    Returns:
        The index that was written.

    Raises:
        ValueError: Samples of a split are missing.
    """
    names = shards_of_ranks[0].keys()
    splits = {split: [shard for shards in shards_of_ranks for shard in shards[split]] for split in names}
    latents = replace(latents, images={split: source.checksum(split) for split in names})
    index = replace(source, kind="latents", latents=latents, raw=None, splits=splits)
    for split in names:
        if (written := index.num_samples(split)) != (expected := source.num_samples(split)):
            raise ValueError(
                f"{written} latents of split {split!r} were written, the images are {expected}: "
                f"{directory} stays without an index; repeat the run without limits on its batches"
            )
    index.save(directory)
    return index


def _npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as stream:
        np.save(stream, array)
        return stream.getvalue()
