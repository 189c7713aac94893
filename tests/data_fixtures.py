"""Tiny datasets of both kinds, in which a sample can be recognised by its content."""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from webdataset import TarWriter

from scalear.data.batch import Batch
from scalear.data.index import DatasetIndex, LatentInfo, Shard
from scalear.data.latents import LatentShardWriter, write_latent_index

TRAIN_SIZES = (5, 7, 4, 6)  # 22 samples
VAL_SIZES = (4, 3)
NUM_CLASSES = 3
IMAGE_SIZE = 8
MOMENTS_SHAPE = (4, 2, 2)
BLOCK_SIZE = 3


def image_of(number: int) -> np.ndarray:
    """uint8 (8, 8); its number in the first pixel; not symmetric."""
    image = np.random.default_rng(number).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    image[0, 0] = number
    return image


def moments_of(numbers: list[int], *, flipped: bool = False) -> torch.Tensor:
    return torch.stack([torch.full(MOMENTS_SHAPE, number + 0.5 * flipped) for number in numbers])


def numbers(batch: Batch) -> list[int]:
    """Of the samples of a batch, by their keys."""
    return [int(key.removeprefix("image")) for key in batch.keys]


def pixels(image_CHW: torch.Tensor) -> np.ndarray:
    """The grey image that a batch holds in [-1, 1], uint8 (H, W)."""
    return ((image_CHW[0] + 1) * 127.5).round().to(torch.uint8).numpy()


def png(image: np.ndarray) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(image).save(stream, "PNG")
        return stream.getvalue()


def sample(number: int) -> dict:
    return {
        "__key__": f"image{number:03d}",
        "png": png(image_of(number)),
        "cls": str(number % NUM_CLASSES).encode(),
    }


def write_images(directory: Path, *, suffix: str = ".tar", replaced: dict[int, dict] | None = None) -> DatasetIndex:
    """Image shards of 22 training samples (0 ...) and 7 for validation (100 ...); `replaced` takes their place."""
    directory.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Shard]] = {}
    for split, first, sizes in (("train", 0, TRAIN_SIZES), ("val", 100, VAL_SIZES)):
        splits[split] = []
        for shard, size in enumerate(sizes):
            path = directory / f"{split}-{shard}{suffix}"
            with TarWriter(str(path), encoder=False) as tar:
                for number in range(first, first + size):
                    tar.write((replaced or {}).get(number, sample(number)))
            first += size
            splits[split].append(Shard(path.name, size, hashlib.sha256(path.read_bytes()).hexdigest()))
    index = DatasetIndex("tiny", "images", IMAGE_SIZE, 1, [str(c) for c in range(NUM_CLASSES)], splits)
    index.save(directory)
    return index


def write_latents(directory: Path, source: DatasetIndex, *, world_size: int = 1) -> DatasetIndex:
    """Latents of the dataset of `write_images`, made by `world_size` ranks."""
    shards_of_ranks = []
    for rank in range(world_size):
        shards = {}
        for split, first in (("train", 0), ("val", 100)):
            size = source.num_samples(split)
            writer = LatentShardWriter(directory, split, rank, block_size=BLOCK_SIZE, blocks_per_shard=2)
            share = list(range(first + rank * size // world_size, first + (rank + 1) * size // world_size))
            for part in (share[:2], share[2:]):  # a call need not be a block
                labels = torch.tensor([number % NUM_CLASSES for number in part])
                keys = [f"image{number:03d}" for number in part]
                writer.add(moments_of(part), moments_of(part, flipped=True), labels, keys)
            shards[split] = writer.close()
        shards_of_ranks.append(shards)
    info = LatentInfo("tests.Tokenizer", "f00d", MOMENTS_SHAPE, "float16", BLOCK_SIZE)
    return write_latent_index(directory, source, info, shards_of_ranks)
