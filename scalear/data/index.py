"""`index.json`: what a directory of shards holds. Written last, so a directory with an index is complete."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from scalear.files import write_json

SCHEMA_VERSION = 1
INDEX_NAME = "index.json"
Kind = Literal["images", "latents"]

# A URL or a relative path. gopen hands URLs to a shell, so an index must not smuggle in more than names.
_SHARD_NAME = re.compile(r"[a-z][a-z0-9]*://[\w.@:-]+(/[\w.%+=@~-]+)+|(?!/|\w+:)[^\x00-\x1f]+", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: File name relative to the index, or a URL that `webdataset.gopen` opens.
        num_samples: Samples in it (not members, not blocks).
        sha256: Of the file as it is stored, in hexadecimal.
    """

    name: str
    num_samples: int
    sha256: str


@dataclass(frozen=True)
class LatentInfo:
    """Which tokenizer made the latents, and how they are stored.

    Attributes:
        tokenizer: Class path of the tokenizer.
        fingerprint: Its `Tokenizer.fingerprint()`; training on latents of another tokenizer is refused.
        moments_shape: (C, h, w) of one sample's moments.
        dtype: NumPy name of the stored moments' type, such as "float16".
        block_size: Samples in each member of a shard; its last block may be smaller.
        images: `DatasetIndex.checksum` of the images of each split; empty if an older version wrote the latents.
    """

    tokenizer: str
    fingerprint: str
    moments_shape: tuple[int, int, int]
    dtype: str
    block_size: int
    images: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RawInfo:
    """How to read shards that other tools wrote: images of any size and mode, which readers crop as packing does.

    Attributes:
        label: Where the label is: "cls" (a member), "json.FIELD" (of the member json), or "key" (the class is part of
            the sample's name). Numbers are labels, other texts are names of classes. None: there are no classes.
    """

    label: str | None


@dataclass(frozen=True)
class DatasetIndex:
    """Content of `index.json`.

    Attributes:
        name: Of the dataset, for logs.
        kind: Whether the shards hold images or cached latents.
        image_size: Side of the square images in pixels (for latents: of the images they were made from).
        image_channels: 1 (grey) or 3 (RGB).
        class_names: Name of each label; empty if the dataset is unlabelled.
        splits: Shards of each split ("train", "val" ...), in order.
        latents: Set if and only if `kind` is "latents".
        raw: Set if other tools wrote the shards; `image_size` is then what readers make of the images.
    """

    name: str
    kind: Kind
    image_size: int
    image_channels: int
    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[Shard]] = field(default_factory=dict)
    latents: LatentInfo | None = None
    raw: RawInfo | None = None

    @property
    def num_classes(self) -> int:
        """0 if the dataset is unlabelled."""
        return len(self.class_names)

    def num_samples(self, split: str) -> int:
        """Samples in all shards of `split`."""
        return sum(shard.num_samples for shard in self.shards(split))

    def checksum(self, split: str) -> str:
        """SHA-256 that tells the content of `split` from any other."""
        checksums = "".join(shard.sha256 for shard in self.shards(split))
        return hashlib.sha256(checksums.encode()).hexdigest()

    def shards(self, split: str) -> list[Shard]:
        """Shards of `split`, in order.

        Raises:
            ValueError: There is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"dataset {self.name!r} has no split {split!r}; it has {sorted(self.splits)}")
        return self.splits[split]

    @classmethod
    def load(cls, directory: str | Path) -> "DatasetIndex":
        """Read and check `directory/index.json`.

        Raises:
            ValueError: The file is missing, unreadable, of another schema version or inconsistent.
        """
        path = Path(directory) / INDEX_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(
                f"cannot read {path}: {error.strerror}. A dataset without {INDEX_NAME} was never finished: "
                "run `scalear data pack` (images) or `scalear predict` with a tokenizer (latents) again, or "
                "`scalear data index` if other tools wrote the shards"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); write the dataset again") from error
        version = content.pop("schema_version", None) if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema version {version!r}, this code reads {SCHEMA_VERSION}; pack again")
        try:
            return cls._from_json(content)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a valid index: {error}; write the dataset again") from error

    def save(self, directory: str | Path) -> None:
        """Write `directory/index.json` atomically: readers see the old file or the new one, never a part."""
        content = {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(self)
        write_json(Path(directory) / INDEX_NAME, content)

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> "DatasetIndex":
        content["splits"] = {split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()}
        if content.get("latents") is not None:
            latents = LatentInfo(**content["latents"])
            content["latents"] = dataclasses.replace(latents, moments_shape=tuple(latents.moments_shape))
        if content.get("raw") is not None:
            content["raw"] = RawInfo(**content["raw"])
        index = cls(**content)
        index.check()
        return index

    def check(self) -> None:
        """Refuse an index that contradicts itself.

        Raises:
            ValueError: It does; says where.
        """
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}, must be one of {get_args(Kind)}")
        if (self.kind == "latents") != (self.latents is not None):
            raise ValueError(f"kind is {self.kind!r} but latents is {self.latents}")
        if self.raw is not None and (self.raw.label is None) != (not self.class_names):
            raise ValueError(f"raw.label is {self.raw.label!r} with {len(self.class_names)} class names")
        if type(self.image_size) is not int or self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size!r}, must be a positive integer")
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels is {self.image_channels!r}, must be 1 or 3")
        if not isinstance(self.class_names, list) or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(f"class_names is {self.class_names!r}, must be a list of names")
        names: set[str] = set()
        if self.raw is not None and self.kind != "images":
            raise ValueError("raw is set, but latents are never raw")
        for shard in (shard for shards in self.splits.values() for shard in shards):
            if type(shard.num_samples) is not int or shard.num_samples < 1:
                raise ValueError(f"shard {shard.name!r} has num_samples {shard.num_samples!r}, must be positive")
            if not _SHARD_NAME.fullmatch(shard.name) or ".." in shard.name.split("/"):
                raise ValueError(f"shard name {shard.name!r} is neither a relative path nor a plain URL")
            if shard.name in names:
                raise ValueError(f"shard {shard.name!r} is listed twice")
            names.add(shard.name)


def shard_url(directory: str | Path, shard: Shard) -> str:
    """What to give `webdataset.gopen` to read `shard` of the dataset in `directory`."""
    # Absolute, for gopen takes `my:data/train.tar` for a URL of a kind that it does not know.
    return shard.name if "://" in shard.name else str(Path(directory).absolute() / shard.name)
