"""Sets of 8-bit images with their classes: generated ones, and real ones to compare with."""

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image

from scalear.data.imaging import IMAGE_EXTENSIONS
from scalear.data.index import DatasetIndex, shard_url
from scalear.data.shards import read_samples
from scalear.evaluation.images import load_samples


@dataclass(frozen=True)
class ImageSet:
    """Images in memory.

    Attributes:
        images: uint8 (N, H, W, C), grey or RGB.
        labels: int64 (N,); -1 where there is no class.
        name: What they are, for tables.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_samples(cls, path: str | Path) -> "ImageSet":
        """The sample set in an `.npz` file."""
        return cls(*load_samples(path), name=str(path))

    @classmethod
    def from_shards(cls, data_dir: str | Path, split: str, count: int | None = None) -> "ImageSet":
        """Real images of a dataset, always the same ones, without augmentation.

        Args:
            data_dir: Dataset of images.
            split: Such as "train".
            count: Take the first so many in the order of the shards, each class filling its equal share first; by
                default all.

        Raises:
            ValueError: The split has too few images, or a shard is broken.
        """
        index = DatasetIndex.load(data_dir)
        available = index.num_samples(split)
        share = available if count is None else -(-count // max(1, index.num_classes))
        count = available if count is None else count
        if index.kind != "images" or not 0 < count <= available:
            raise ValueError(f"need {count} images of {split!r} in {data_dir}, which holds {available} {index.kind}")
        # Still encoded: the spare ones are needed only where a class is too small for its share.
        taken, spare, seen = [], [], Counter()
        for members in _samples(Path(data_dir), index, split):
            label = int(members["cls"]) if index.num_classes else -1
            (taken if index.num_classes == 0 or seen[label] < share else spare).append((members, label))
            seen[label] += 1
            if len(taken) == count:
                break
        chosen = (taken + spare)[:count]
        images = np.stack([_decode(members, index.image_channels) for members, _ in chosen])
        which = "all" if count == available else f"first {count:,}, class by class,"
        return cls(images, np.array([label for _, label in chosen]), f"{which} of {index.name} {split}")


def _samples(data_dir: Path, index: DatasetIndex, split: str):
    for shard in index.shards(split):
        url = shard_url(data_dir, shard)
        try:
            with webdataset.gopen(url) as stream:
                for _, members in read_samples(stream):
                    yield members
        except Exception as error:
            raise ValueError(f"cannot read shard {url}: {error}; see `scalear data verify {data_dir}`") from error


def _decode(members: dict[str, bytes], channels: int) -> NDArray[np.uint8]:
    content = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)
