"""Which shards lie in a folder: what a list of WIDS or of timm says, else every tar in or below it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scalear.data.image_tree import SPLITS

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass
class FoundShards:
    """The shards of a folder.

    Attributes:
        splits: Names of the shards of each split, in order.
        sizes: Samples in those shards whose list counts them.
        label: Where labels are, if a list says so.
        absent: Shards that are listed but not there.
    """

    splits: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    label: str | None = None
    absent: list[str] = field(default_factory=list)


def find_shards(path: Path) -> FoundShards:
    """The shards in a folder, or in a list of them.

    Raises:
        ValueError: There are none, or a list cannot be understood.
    """
    directory = path if path.is_dir() else path.parent
    if path.is_file() and path.name.endswith(SHARD_SUFFIXES):
        raise ValueError(f"{path} is a shard: give its folder, {directory}")
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    lists = {file: _read_json(file) for file in files}
    found, split_of = FoundShards(), {}
    for shard in _listed(_of_wids, lists) or _listed(_of_info, lists) or _tars(path):
        name = shard.url if re.match(r"(?!file:)\w+://", shard.url) else _local_name(directory, shard.url)
        if "://" not in name and not (directory / name).is_file():
            found.absent.append(name)
            continue
        split = shard.split or _split_in(name) or "train"
        if (other := split_of.setdefault(name, split)) != split:
            raise ValueError(f"{name} is listed for {other} and for {split}: give the list to take, DIR/NAME.json")
        if name not in found.splits.setdefault(split, []):
            found.splits[split].append(name)
        if shard.size is not None:
            found.sizes[name] = shard.size
        found.label = found.label or shard.label
    if not found.splits:
        listed = f": {len(found.absent)} are listed but not there, such as {found.absent[0]}" if found.absent else ""
        kinds = "that a list of WIDS or timm names" if path.is_file() else f"({', '.join(SHARD_SUFFIXES)})"
        raise ValueError(f"{path} holds no shards {kinds}{listed}; fetch them first")
    return found


class _Listed(NamedTuple):
    """What a list says of a shard."""

    split: str | None
    url: str
    size: int | None = None
    label: str | None = None


def _listed(kind: Callable[[Path, Any], Iterator[_Listed]], lists: Mapping[Path, Any]) -> list[_Listed]:
    shards = []
    for file, content in lists.items():
        try:
            shards += kind(file, content)
        except (TypeError, LookupError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{file} looks like a list of shards, but does not hold what one does ({type(error).__name__}: "
                f"{error}); fetch it again, or move it away to take every shard of the folder"
            ) from error
    return shards


def _of_wids(file: Path, content: Any) -> Iterator[_Listed]:
    """WebDataset's list for random access: `shardlist`, or `datasets` of such."""
    for part in (content, *_parts(content, "datasets")):
        if not isinstance(part, dict) or "shardlist" not in part:
            continue
        named = (str(name) for name in (part.get("split"), part.get("name"), file.stem) if name)
        split = next(filter(None, map(_split_in, named)), None)
        for shard in part["shardlist"]:
            yield _Listed(split, shard["url"], shard.get("nsamples"))


def _of_info(file: Path, content: Any) -> Iterator[_Listed]:
    """The `_info.json` of timm: `splits`, each with `filenames` and `shard_lengths`."""
    splits = _parts(content, "splits")
    for split in splits:
        if not isinstance(splits, dict) or not isinstance(splits[split], dict) or "filenames" not in splits[split]:
            continue
        part = splits[split]
        names, sizes = part["filenames"], part.get("shard_lengths") or [None] * len(part["filenames"])
        if not isinstance(names, list) or len(names) != len(sizes):
            raise ValueError(f"filenames of {split} must be a list, as long as shard_lengths")
        label = f"json.{part['alt_label']}" if part.get("alt_label") else None
        for name, size in zip(names, sizes, strict=True):
            yield _Listed(_split_in(split) or split, name, size, label)


def _parts(content: Any, name: str) -> list | dict:
    parts = content.get(name) if isinstance(content, dict) else None
    return parts if isinstance(parts, list | dict) else []


def _tars(path: Path) -> list[_Listed]:
    if not path.is_dir():
        return []
    files = sorted(path.rglob("*"))
    shards = [file for file in files if file.name.endswith(SHARD_SUFFIXES) and not file.name.startswith(".")]
    return [_Listed(None, file.relative_to(path).as_posix()) for file in shards if file.is_file()]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None  # it is not a list, whatever it is


def _local_name(directory: Path, url: str) -> str:
    """Of a shard that a list names, relative to the folder; lists written elsewhere have paths of their own."""
    path = Path(re.sub(r"^file:(//)?", "", url))
    for root in (directory, directory.resolve()):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    parts = [part for part in path.parts if part not in (path.anchor, "..", ".")]
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if (directory / tail).is_file()), "/".join(parts))


def _split_in(path: str) -> str | None:
    """The split that a path names, if it does; the file's name counts more than the folders'."""
    words = [word for part in reversed(path.split("/")) for word in re.split(r"[^a-z]+", part.lower())]
    return next((SPLITS[word] for word in words if word in SPLITS), None)
