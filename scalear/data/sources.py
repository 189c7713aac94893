"""Where images to pack come from: a folder tree, or the original Fashion-MNIST files."""

import functools
import gzip
import hashlib
import math
import re
import struct
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from scalear.data.decoding import MAX_PIXELS, open_image
from scalear.data.image_tree import files_of_splits, find_images, in_class_order
from scalear.data.index import DatasetIndex, Shard
from scalear.data.plan import TrainPlan
from scalear.data.reader import ImageShard, open_shard

_MIXED_SHARDS = 64  # are open at a time when shards are packed again


@dataclass(frozen=True)
class Entry:
    """One image that a source offers.

    Attributes:
        key: Name of the sample in its shard; unique within a split.
        label: Class index; None if the source has no classes.
        location: Where the source finds the image; also how error messages call it.
    """

    key: str
    label: int | None
    location: str


@dataclass(frozen=True)
class Listing:
    """All that a source offers: the class names (empty: unlabelled) and each split in the order to pack it."""

    class_names: list[str]
    splits: dict[str, list[Entry]]


class ImageSource(ABC):
    """Lists images, then gives them one by one. Pickled into worker processes, so it holds nothing big."""

    image_channels: ClassVar[int]
    """1 (grey) or 3 (RGB): what to pack unless told otherwise."""

    @abstractmethod
    def listing(self, seed: int) -> Listing:
        """Every image, shuffled: a function of the source's content and `seed`.

        Raises:
            ValueError: The source is missing or cannot be packed as asked; names the remedy.
        """

    @abstractmethod
    def image(self, entry: Entry) -> Image.Image:
        """The decoded image, in any mode and size. Raises whatever the decoder raises."""


class ImageFolder(ImageSource):
    """A tree of images: one folder per class, at any depth (ImageNet layout), or flat and unlabelled.

    The name of a class is the path of its folder relative to the root, such as "n01440764" or "animals/dog"; labels
    count the classes in the order of their names, numbers by their value. Images directly in the root, and no class
    folders, make an unlabelled dataset. Hidden files, and those that Pillow does not open by their extension, are left
    out.

    Where all images lie in folders `train`, `val` or `test` at the same depth, above the classes or below them, these
    become the splits (also `Training`, `valid`, `validation`, `dev`, `train2017`, `test_set` and the like).

    Args:
        root: Folder of the training images, or of all splits.
        val_root: Folder of the validation images, with the same classes.
        val_fraction: Part of every class that becomes the validation split instead, in [0, 1).
        labelled: False if the folders below the root are not classes.
        max_pixels: Most pixels of an image, against files that are made to fill the memory.
        max_images: Take about so many of all, the same share of every class and split, and of a class at least one.
        balance: List the training images of small classes several times (up to ten), until each class has this share
            of what the largest has, in [0, 1].
    """

    image_channels = 3

    def __init__(
        self,
        root: str,
        val_root: str | None = None,
        val_fraction: float = 0.0,
        labelled: bool = True,
        max_pixels: int = MAX_PIXELS,
        max_images: int | None = None,
        balance: float = 0.0,
    ) -> None:
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction is {val_fraction}, must be in [0, 1)")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance is {balance}, must be in [0, 1]")
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images is {max_images}, must be at least 1")
        if val_root is not None and val_fraction:
            raise ValueError(f"give either val_root ({val_root}) or val_fraction ({val_fraction}), not both")
        _check_max_pixels(max_pixels)
        self.root = root
        self.val_root = val_root
        self.val_fraction = val_fraction
        self.labelled = labelled
        self.max_pixels = max_pixels
        self.max_images = max_images
        self.balance = balance

    def listing(self, seed: int) -> Listing:
        files = find_images(self.root)
        splits = files_of_splits(self.root, files) or {"train": files}
        if "val" in splits and (self.val_root is not None or self.val_fraction):
            raise ValueError(f"{self.root} holds the splits {sorted(splits)}: leave out val_root and val_fraction")
        if self.val_root is not None:
            splits["val"] = find_images(self.val_root)
        class_names = self._class_names(splits["train"])
        listed = {split: _shuffled(self._entries(found, class_names), seed) for split, found in splits.items()}
        if self.max_images is not None:
            share = self.max_images / sum(map(len, listed.values()))
            listed = {split: _share_of_each_class(entries, share) for split, entries in listed.items()}
        if self.val_fraction:
            listed |= split_by_class(listed["train"], self.val_fraction)
        if self.balance:
            listed["train"] = _shuffled(_balanced(listed["train"], self.balance), seed)
        return Listing(class_names, listed)

    def image(self, entry: Entry) -> Image.Image:
        return open_image(Path(entry.location).read_bytes(), self.max_pixels)

    def _class_names(self, files: dict[str, str]) -> list[str]:
        folders = set(files.values()) if self.labelled else {""}
        if len(folders) > 1 and "" in folders:
            loose = next(path for path, folder in files.items() if not folder)
            raise ValueError(
                f"{self.root} holds both class folders and loose images such as {loose}; "
                "move those into a folder, or pack without classes (labelled: false)"
            )
        return [] if folders == {""} else in_class_order(folders)

    def _entries(self, files: dict[str, str], class_names: list[str]) -> list[Entry]:
        labels = {name: label for label, name in enumerate(class_names)}
        entries = []
        for number, (path, folder) in enumerate(files.items()):
            if labels and folder not in labels:
                fault = f"the training images have no class {folder!r}" if folder else "it lies in no class folder"
                raise ValueError(
                    f"{path}: {fault}, but splits must share classes; move it, or pack the folder of the training "
                    "images as source.root, and as source.val_root one with the same classes"
                )
            # Numbered, because names that differ only in folder or extension must not meet in one shard.
            key = f"{number:08d}-{plain_name(Path(path).stem)}"
            entries.append(Entry(key, labels.get(folder), path))
        return entries


class Shards(ImageSource):
    """Tar shards with an index, of this package or of other tools (see `scalear data index`).

    Shards are mixed in groups, so that few are open at a time.

    Args:
        root: Folder of the shards and their index.json.
        val_fraction: Part of every class that becomes the validation split, if the index has none, in [0, 1).
        max_pixels: Most pixels of an image, against files that are made to fill the memory.
    """

    def __init__(self, root: str, val_fraction: float = 0.0, max_pixels: int = MAX_PIXELS) -> None:
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction is {val_fraction}, must be in [0, 1)")
        _check_max_pixels(max_pixels)
        self.root = root
        self.val_fraction = val_fraction
        self.max_pixels = max_pixels

    @property
    def image_channels(self) -> int:
        """Those of the index."""
        return DatasetIndex.load(self.root).image_channels

    def listing(self, seed: int) -> Listing:
        index = DatasetIndex.load(self.root)
        if index.kind != "images":
            raise ValueError(f"{self.root} holds {index.kind}, only images can be packed")
        splits = {split: self._entries(index, shards, seed) for split, shards in index.splits.items()}
        if self.val_fraction:
            if set(splits) != {"train"}:
                raise ValueError(f"{self.root} holds the splits {sorted(splits)}: leave out val_fraction")
            splits = split_by_class(splits["train"], self.val_fraction)
        return Listing(index.class_names, splits)

    def image(self, entry: "ShardEntry") -> Image.Image:
        _, _, content = _open_shard(self.root, entry.shard).encoded(entry.number)
        return open_image(content, self.max_pixels)

    def _entries(self, index: DatasetIndex, shards: Sequence[Shard], seed: int) -> list[Entry]:
        entries = []
        for shard in shards:
            opened = open_shard(self.root, index, shard)
            for number in range(len(opened)):
                name, _, _ = opened.encoded(number)
                key = f"{len(entries):08d}-{plain_name(name)}"  # numbered, because shards may share keys
                label = opened.label(number) if index.num_classes else None
                entries.append(ShardEntry(key, label, f"{self.root}/{shard.name}: {name}", shard.name, number))
        plan = TrainPlan([shard.num_samples for shard in shards], seed, _MIXED_SHARDS)
        return [entries[place] for place in plan.order(0).tolist()]


@dataclass(frozen=True)
class ShardEntry(Entry):
    """An image in a shard.

    Attributes:
        shard: Name of the shard.
        number: Place of the sample in it.
    """

    shard: str
    number: int


@functools.lru_cache(maxsize=_MIXED_SHARDS)  # in each process
def _open_shard(root: str, name: str) -> ImageShard:
    index = DatasetIndex.load(root)
    (shard,) = (shard for shards in index.splits.values() for shard in shards if shard.name == name)
    return open_shard(root, index, shard)


class FashionMNIST(ImageSource):
    """Fashion-MNIST (Xiao et al. 2017) from its original files, zero-padded from 28x28 to 32x32.

    Each class of the training file is shuffled by the seed and dealt out in order: `skip`, then `num_train`, then
    `num_val`, a tenth of each from every class. Calls with equal seeds and other ranges are therefore disjoint. The
    original test file is touched by `num_test` alone, and makes a split `test`. A sample's key carries its row in the
    original file.

    Args:
        root: Folder of train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, and of those of t10k for `num_test`,
            or above FashionMNIST/raw as torchvision lays it out. Default: where the Debian package
            dataset-fashion-mnist puts them.
        num_train: Images of the training split, a multiple of 10.
        num_val: Images of the validation split, a multiple of 10; 0 for none.
        num_test: Images of the original test file, a multiple of 10; 0 for none.
        skip: Images of the training file to leave out first, a multiple of 10: those that another call has packed.
        download: Let torchvision download the files to `root` if they are missing.
    """

    image_channels = 1
    class_names: ClassVar[list[str]] = [
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ]  # fmt: skip

    def __init__(
        self,
        root: str = "/usr/share/datasets/fashion-mnist",
        num_train: int = 12_000,
        num_val: int = 2_000,
        skip: int = 0,
        download: bool = False,
        num_test: int = 0,
    ) -> None:
        given = {"num_train": num_train, "num_val": num_val, "num_test": num_test, "skip": skip}
        for name, count in given.items():
            if count < 0 or count % len(self.class_names):
                raise ValueError(f"{name} is {count}, must be a multiple of {len(self.class_names)}, to be balanced")
        self.root = root
        self.num_train = num_train
        self.num_val = num_val
        self.num_test = num_test
        self.skip = skip
        self.download = download

    def listing(self, seed: int) -> Listing:
        if self.download and self._find("train-images-idx3-ubyte") is None:
            self._download()
        dealt = {"skip": self.skip, "train": self.num_train, "val": self.num_val}
        splits = self._dealt("train", "fashion-{:05d}", dealt, seed)
        del splits["skip"]
        if self.num_test:
            splits |= self._dealt("t10k", "fashion-test-{:05d}", {"test": self.num_test}, seed)
        return Listing(list(self.class_names), {split: entries for split, entries in splits.items() if entries})

    def image(self, entry: Entry) -> Image.Image:
        file, row = entry.location.split()
        grey_NHW = _read_idx(self._path(f"{file}-images-idx3-ubyte"))
        return Image.fromarray(np.pad(grey_NHW[int(row)], 2))

    def _dealt(self, file: str, key: str, counts: dict[str, int], seed: int) -> dict[str, list[Entry]]:
        """Images of a file, dealt out in order: of each class a tenth of each count."""
        rows_of = defaultdict(list)
        for row, label in enumerate(_read_idx(self._path(f"{file}-labels-idx1-ubyte")).tolist()):
            rows_of[label].append(Entry(key.format(row), label, f"{file} {row}"))
        if set(rows_of) != set(range(len(self.class_names))):
            raise ValueError(f"the labels in {self.root} are {sorted(rows_of)}, not 0 to 9: not Fashion-MNIST")
        wanted, available = sum(counts.values()) // len(self.class_names), min(map(len, rows_of.values()))
        if wanted > available:
            asked = " + ".join(name if name == "skip" else f"num_{name}" for name in counts)
            raise ValueError(f"{asked} need {wanted} images of each class, the file {file} has {available}")
        shuffled = [_shuffled(rows, seed) for rows in rows_of.values()]
        splits, start = {}, 0
        for split, count in counts.items():
            stop = start + count // len(self.class_names)
            splits[split] = _shuffled((entry for rows in shuffled for entry in rows[start:stop]), seed)
            start = stop
        return splits

    def _path(self, name: str) -> Path:
        path = self._find(name)
        if path is None:
            raise ValueError(
                f"no {name}.gz in {self.root}; install the Debian package dataset-fashion-mnist, "
                "point root at the original files, or set download: true and a root to download to"
            )
        return path

    def _find(self, name: str) -> Path | None:
        folders = (Path(self.root), Path(self.root, "FashionMNIST", "raw"))
        return next((path for folder in folders if (path := folder / f"{name}.gz").is_file()), None)

    def _download(self) -> None:
        from torchvision import datasets  # here, because it takes seconds and only this call needs it

        try:
            datasets.FashionMNIST(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"cannot download Fashion-MNIST to {self.root} ({error}); offline, install the Debian package "
                "dataset-fashion-mnist or copy the original files there"
            ) from error


@functools.lru_cache(maxsize=2)  # images and labels of one dataset, once per process
def _read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes in LeCun's idx format, gzip-compressed."""
    try:
        content = gzip.decompress(path.read_bytes())
        num_dims = content[3]
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"begins with {content[:3]!r}")
        shape = struct.unpack_from(f">{num_dims}I", content, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, struct.error) as error:
        raise ValueError(f"{path} is not a whole idx file of unsigned bytes: {error}; fetch it again") from error


def _check_max_pixels(max_pixels: int) -> None:
    if max_pixels < 1:
        raise ValueError(f"max_pixels is {max_pixels}, must be at least 1")


def _shuffled(entries: Iterable[Entry], seed: int) -> list[Entry]:
    """Sorted by a hash of seed and key: an order that no library version can change."""

    def rank(entry: Entry) -> bytes:
        return hashlib.blake2b(f"{seed}/{entry.key}".encode(), digest_size=16).digest()

    return sorted(entries, key=rank)


def plain_name(name: str) -> str:
    """What of a name may be part of a key."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60]


_MOST_REPEATS = 10  # of an image, by which its class is to weigh as much as others


def _by_class(entries: Iterable[Entry]) -> dict[int | None, list[Entry]]:
    of_class = defaultdict(list)
    for entry in entries:
        of_class[entry.label].append(entry)
    return of_class


def _share_of_each_class(entries: Sequence[Entry], share: float) -> list[Entry]:
    """The first ones of each class, in the order given, at least one."""
    groups = _by_class(entries).values()
    kept = {entry.key for group in groups for entry in group[: max(1, round(len(group) * share))]}
    return [entry for entry in entries if entry.key in kept]


def _balanced(entries: Sequence[Entry], balance: float) -> Iterator[Entry]:
    """All, those of small classes several times, under keys of their own."""
    groups = _by_class(entries).values()
    wanted = balance * max(map(len, groups))
    for group in groups:
        times = min(_MOST_REPEATS, max(1, math.ceil(wanted / len(group))))
        for number in range(times):
            yield from (replace(entry, key=f"{entry.key}-{number}") if number else entry for entry in group)


def split_by_class(entries: Sequence[Entry], val_fraction: float) -> dict[str, list[Entry]]:
    """The first `val_fraction` of each class, in the order given, goes to the validation split."""
    groups = _by_class(entries).values()
    held_out = {entry.key for group in groups for entry in group[: round(len(group) * val_fraction)]}
    if not held_out:
        raise ValueError(f"val_fraction {val_fraction} of {len(entries)} images rounds to none of any class; raise it")
    return {
        "train": [entry for entry in entries if entry.key not in held_out],
        "val": [entry for entry in entries if entry.key in held_out],
    }
