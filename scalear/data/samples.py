"""What the members of an image sample mean: one reader for training, verification, statistics and FID."""

import json
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scalear.data.decoding import jpeg_pixels, open_image
from scalear.data.imaging import center_crop, standardise
from scalear.data.index import DatasetIndex

Members = Mapping[str, bytes | memoryview]
"""Content of a sample's files by extension, in small letters."""

_IMAGE_EXTENSIONS = frozenset(
    "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm qoi tga tif tiff webp".split()
)  # which tools write into shards, and Pillow opens

WORDNET_ID = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")
"""What ImageNet calls a class."""


class SampleReader:
    """Reads the samples of a dataset of images.

    Args:
        index: Of the dataset.
    """

    def __init__(self, index: DatasetIndex) -> None:
        self._size = index.image_size
        self._channels = index.image_channels
        self._num_classes = index.num_classes
        self._raw = index.raw
        self._labels = {name: label for label, name in enumerate(index.class_names)}

    def image(self, members: Members) -> NDArray[np.uint8]:
        """The decoded image, (H, W, channels), as the index says.

        Raises:
            ValueError: There is not one image, or it is not of the size and channels that a packed one has.
            Exception: Whatever Pillow raises on broken bytes.
        """
        _, content = encoded_image(members)
        pixels = jpeg_pixels(content, self._size, self._channels)
        if pixels is not None and self._raw is not None:
            top, left = ((side - self._size) // 2 for side in pixels.shape[:2])
            pixels = pixels[top : top + self._size, left : left + self._size]
        if pixels is None:
            image = open_image(content)
            if self._raw is not None:
                image = center_crop(standardise(image, self._channels), self._size)
            pixels = np.atleast_3d(np.asarray(image))
        (height, width, channels), expected = pixels.shape, (self._size, self._size, self._channels)
        if (width, height, channels) != expected:
            raise ValueError(f"width, height and channels are {width, height, channels}, the index says {expected}")
        return pixels

    def label(self, key: str, members: Members) -> int:
        """The label of a sample; -1 in a dataset without classes.

        Raises:
            ValueError: It is missing, or of no class.
        """
        if not self._num_classes:
            return -1
        if self._raw is None:
            if "cls" not in members:
                raise ValueError("has no label (.cls), though the dataset has classes")
            label = int(bytes(members["cls"]))
        else:
            value = label_value(self._raw.label, key, members)
            label = self._labels.get(value) if isinstance(value, str) else value
            if label is None:
                raise ValueError(f"its {self._raw.label} is {value!r}, which is no class of the index")
        if not 0 <= label < self._num_classes:
            raise ValueError(f"label {label} is out of range [0, {self._num_classes - 1}]")
        return label


def encoded_image(members: Members) -> tuple[str, bytes | memoryview]:
    """Extension and content of the image among the members.

    Raises:
        ValueError: There is none, or more than one.
    """
    images = _images(members)
    if len(images) != 1:
        raise ValueError(f"has {len(images)} images among its members {sorted(members)}, must be 1")
    return images[0]


def has_image(members: Members) -> bool:
    """Whether one of the members is the image."""
    return len(_images(members)) == 1


def _images(members: Members) -> list[tuple[str, bytes | memoryview]]:
    """Members that may be the image: those like `jpg`, else those like `seg.png`."""
    images = [item for item in members.items() if item[0].rpartition(".")[2] in _IMAGE_EXTENSIONS]
    return [item for item in images if "." not in item[0]] or images


def label_value(place: str, key: str, members: Members) -> int | str | None:
    """What stands at the place of a label: a number, the name of a class, or None if there is nothing.

    Args:
        place: As in `RawInfo.label`.
        key: Of the sample.
        members: Of the sample.
    """
    if place == "key":
        return class_in_key(key)
    member, *fields = place.split(".")
    try:
        value = bytes(members[member]).decode().strip()
        value = json.loads(value) if fields else value
        for field in fields:
            value = value[field]
    except (ValueError, LookupError, TypeError):
        return None
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value):
        value = int(value)
    return value if type(value) in (int, str) and value != "" else None


def class_in_key(key: str) -> str | None:
    """The class that a sample's name tells: a WordNet ID, its folder, or what stands before its number."""
    folder, _, name = key.rpartition("/")
    if found := WORDNET_ID.findall(name):
        return found[-1]
    return folder.rpartition("/")[2] or re.sub(r"[_-]?\d*$", "", name) or None
