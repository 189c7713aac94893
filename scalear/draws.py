"""Every random number of training and sampling, drawn per sample.

A sample owns a stream that is named by integers:

    (seed, i)                      generated image i
    (seed, TRAINING, position)     training sample at a place of the endless stream of batches (`Batch.position`),
                                   which says the optimizer step and the row of the global batch
    (seed, VALIDATION, index)      validation sample
    (seed, DROPOUT, position)      seed of the global generator, from which alone dropout draws, in a training step
                                   whose batch begins there
    (seed, SCHEDULES, step)        what all samples of a step share; in place of the step, for what those of a batch
                                   share, the position of its first sample
    (seed, CODEBOOK, step)         which vectors become codes, at the start and when codes are revived

What a sample draws therefore never depends on the batch it happens to share, on the number of ranks, or on the
device; and no two streams are the same, for hashes of their names start them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

# What a stream is for. Images have no such part, and their numbers are never negative.
VALIDATION, DROPOUT, SCHEDULES, TRAINING, CODEBOOK = -1, -2, -3, -4, -5


class Draws(Protocol):
    """A source of random numbers for a batch; row `b` belongs to sample `b`.

    `name` says what the numbers are for (`"label_drop"`, `"t_0"`, `"noise_2"` ...). Each name is drawn once.
    """

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) of shape (B, *shape), float32."""

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers of shape (B, *shape), float32."""


class SeededDraws:
    """Draws from one CPU generator per sample, moved to `device`.

    Args:
        streams: One name per sample, a tuple of integers such as `(seed, i)`.
        device: Where the numbers are needed. They are drawn on the CPU, so a GPU gives the same images.
    """

    def __init__(self, streams: Sequence[tuple[int, ...]], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator().manual_seed(stream_seed(stream)) for stream in streams]

    @classmethod
    def of_images(cls, seed: int, places: Iterable[int], device: torch.device | str = "cpu") -> "SeededDraws":
        """What the generated images at these places of a set are made of: image i of (seed, i), whoever samples it."""
        return cls([(seed, place) for place in places], device)

    @classmethod
    def of_batch(cls, seed: int, stream: int, position_B: Tensor, device: torch.device | str = "cpu") -> "SeededDraws":
        """What the samples of a batch draw, by their `Batch.position`; the stream is `TRAINING` or `VALIDATION`."""
        return cls([(seed, stream, position) for position in position_B.tolist()], device)

    def uniform(self, name: str, *shape: int) -> Tensor:
        return self._draw(torch.rand, shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        return self._draw(torch.randn, shape)

    def _draw(self, sampler, shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(len(self._generators), *shape)
        for row, generator in zip(out, self._generators, strict=True):
            sampler(shape, generator=generator, out=row)
        return out.to(self.device, non_blocking=True)


def stream_seed(stream: tuple[int, ...]) -> int:
    """A 63-bit seed from the integers of a stream's name; a hash, so that neighbours are unrelated."""
    digest = hashlib.blake2b(repr(tuple(int(part) for part in stream)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
