"""What a loader yields: one record for images and cached latents alike."""

from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Literal

import torch
from torch import Tensor


@dataclass
class Batch:
    """One rank's part of a global batch (or of a validation batch).

    Attributes:
        inputs: `kind == "images"`: image_BCHW, float32 in [-1, 1]. `kind == "latents"`: moments_BChw, what
            `Tokenizer.moments` gave for the image (or for its mirror image), in the type in which shards hold it.
        label: Class index of each sample, (B,) int64; -1 where the dataset has no classes.
        keys: Name of each sample in its shard, for error messages.
        position: Place of each sample in the endless training stream, (B,) int64. Together with the seed it
            names the sample's random numbers, whatever the number of ranks. In evaluation: its index in the split.
        stream_end: Samples of the stream that are used up once this *global* batch is done; the resume point.
        kind: What `inputs` holds.
    """

    inputs: Tensor
    label: Tensor
    keys: list[str]
    position: Tensor
    stream_end: int
    kind: Literal["images", "latents"]

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from where copies to a GPU are fast; DataLoader calls it."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("inputs", "label", "position")}
        return replace(self, **pinned)


def _reduce(batch: Batch) -> tuple:
    # Between processes a tensor costs a round trip, small or large; the small ones travel as bytes.
    small = {"label": batch.label.numpy(), "position": batch.position.numpy()}
    return _restore, (replace(batch, **small).__dict__,)


def _restore(fields: dict) -> Batch:
    small = {name: torch.from_numpy(fields[name]) for name in ("label", "position")}
    return Batch(**fields | small)


ForkingPickler.register(Batch, _reduce)
