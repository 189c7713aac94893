"""What a loader yields: one record for images and cached latents alike."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor


@dataclass
class Batch:
    """One rank's part of a global batch (or of a validation batch).

    Attributes:
        inputs: `kind == "images"`: image_BCHW, float32 in [-1, 1]. `kind == "latents"`: moments_BChw, float32,
            exactly what `Tokenizer.moments` gave for the image (or for its mirror image).
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
