"""Work on a few samples at a time, so that what goes through several operations stays in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

_CACHED = 1 << 20  # elements of one tensor that are handled at a time


def pieces(x: Tensor) -> Iterator[slice]:
    """Runs along the first axis that fit the cache."""
    step = max(1, _CACHED // max(1, x[:1].numel()))
    return (slice(first, first + step) for first in range(0, len(x), step))


def wide(x: Tensor) -> Tensor:
    """As float32, or as it is if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
