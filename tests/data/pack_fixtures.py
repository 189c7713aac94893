"""Folders of noise to pack, and what a packed dataset holds."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from scalear.data.index import DatasetIndex
from scalear.data.pack import pack
from scalear.data.shards import read_samples, shard_content


def noise(size, channels=3, seed=0):
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def make_tree(root, classes=("cat", "dog"), count=6, size=(20, 24)):
    for number in range(count * len(classes)):
        path = root / classes[number % len(classes)] / f"photo.{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(size, seed=number).save(path)
    return root


def samples(directory, split="train"):
    for shard in DatasetIndex.load(directory).shards(split):
        yield from read_samples(shard_content(str(Path(directory, shard.name)))).items()


def decode(members):
    (content,) = (content for extension, content in members.items() if extension != "cls")
    return np.asarray(Image.open(io.BytesIO(content)))


def content_of(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def pack_here(source, output_dir, image_size=16, **arguments):
    return pack(source, str(output_dir), image_size, **({"num_workers": 0} | arguments))
