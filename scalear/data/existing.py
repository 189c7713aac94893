"""`scalear data index`: an index for shards that other tools wrote, which are then read where they lie."""

import functools
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from scalear.data.index import INDEX_NAME, DatasetIndex, RawInfo, Shard, shard_url
from scalear.data.pack import print_classes
from scalear.data.parallel import check_stop, run_parallel
from scalear.data.samples import WORDNET_ID, has_image, label_value
from scalear.data.shards import read_samples, shard_content
from scalear.data.sources import SPLITS, in_class_order
from scalear.hardware.cpus import allowed_cpus

_SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_PLACES = ("cls", "json.label", "json.cls", "json.class", "json.class_id", "json.class_name", "key")
_MANY_CLASSES = 100_000


def index(
    data_dir: str,
    image_size: int = 256,
    image_channels: Literal[1, 3] = 3,
    label: str | None = None,
    class_names: str | None = None,
    val_shards: int = 0,
    name: str | None = None,
    num_workers: int | None = None,
) -> DatasetIndex:
    """Make index.json for tar shards that other tools wrote, so that they are read without packing them again.

    Reads every shard once (not its images). Which shards there are says a WIDS list or `_info.json` in the folder, else
    every tar in or below it is one; a split is told by the list, or by the names of folders and files. Readers turn
    images upright and cut them by the centre crop of ADM, whatever their size.

    Args:
        data_dir: Folder of the shards, or the WIDS list of them.
        image_size: Side of the square that readers make of the images, in pixels.
        image_channels: 1 (grey) or 3 (RGB), what readers make of them.
        label: Where the label is: cls (the member of that name), json.FIELD (of the member json), key (the class is
            part of the sample's name, as in n01440764_18.JPEG or cat/7.jpg) or none. Default: the first that all have.
        class_names: File with the name of each label, one per line. Default: what the labels say.
        val_shards: So many shards, the last, become the split "val".
        name: Of the dataset. Default: the name of its folder.
        num_workers: Processes; 0 works in this one. Default: one per CPU that it may use.

    Returns:
        The index that was written.

    Raises:
        ValueError: There are no shards, or they are broken, or have no such labels.
        OSError: The folder cannot be written.
    """
    if image_size < 1 or val_shards < 0:
        raise ValueError(f"image_size is {image_size}, must be at least 1; val_shards is {val_shards}, at least 0")
    if label is not None and not re.fullmatch(r"cls|key|none|json(\.[^.]+)+", label):
        raise ValueError(f"label is {label!r}, must be cls, json.FIELD, key or none")
    path = Path(data_dir)
    directory = path.parent if path.is_file() else path
    if (directory / INDEX_NAME).exists():
        raise ValueError(f"{directory} has an index already; delete {directory / INDEX_NAME} to make another")
    if not os.access(directory, os.W_OK) and directory.is_dir():
        raise ValueError(
            f"{directory} cannot be written: make a folder of links to its shards (ln -s {directory}/*.tar FOLDER), "
            "and an index of that"
        )
    found = _find_shards(path)
    places = _PLACES if label is None else (label,)
    if label is None and found.label is not None:
        places = (found.label,)
    scans = _scan(directory, found, places, allowed_cpus() if num_workers is None else num_workers)
    splits = {
        split: [scans[shard].shard for shard in shards if scans[shard].shard.num_samples]
        for split, shards in found.splits.items()
    }
    _say_what_is_left_out(found, scans)
    splits = _hold_out({split: shards for split, shards in splits.items() if shards}, val_shards)
    place, values = _choose_label(scans.values(), places)
    names = [] if place is None else _class_names(place, values, class_names)
    made = DatasetIndex(
        name or directory.resolve().name, "images", image_size, image_channels, names, splits, raw=RawInfo(place)
    )
    made.check()
    made.save(directory)
    print_classes(names)
    for split, shards in splits.items():
        print(f"{split}: {made.num_samples(split):,} samples in {len(shards)} shards")
    origin = "none; say --label if there are some" if place is None else f"from {place}"
    print(f"labels: {origin}. Wrote {directory / INDEX_NAME}")
    return made


@dataclass
class _Found:
    """Names of the shards of each split; what a list says of their samples and label; which of all are not there."""

    splits: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    label: str | None = None
    names: set[str] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)

    def add(self, directory: Path, split: str | None, url: str, size: int | None) -> None:
        name = url if re.match(r"(?!file:)\w+://", url) else _local_name(directory, url)
        self.names.add(name)
        if "://" not in name and not (directory / name).is_file():
            self.absent.append(name)
            return
        self.splits.setdefault(split or _split_in(name) or "train", []).append(name)
        if size is not None:
            self.sizes[name] = size


@dataclass(frozen=True)
class _Scan:
    """What reading one shard found: how often which value stands at each place where a label may be."""

    shard: Shard
    values: Mapping[str, Counter]
    without_image: list[str]


def _find_shards(path: Path) -> _Found:
    found = _Found()
    directory = path if path.is_dir() else path.parent
    lists = {file: _read_json(file) for file in ([path] if path.is_file() else sorted(path.glob("*.json")))}
    for file, content in lists.items():  # of WIDS
        for part in (content, *content.get("datasets", [])):
            named = (str(name) for name in (part.get("split"), part.get("name"), file.stem) if name)
            split = next(filter(None, map(_split_in, named)), None)
            for shard in part.get("shardlist", []):
                found.add(directory, split, shard["url"], shard.get("nsamples"))
    if not found.names:
        infos = [content["splits"] for content in lists.values() if isinstance(content.get("splits"), dict)]
        for split, part in (item for splits in infos for item in splits.items() if "filenames" in item[1]):
            sizes = part.get("shard_lengths") or [None] * len(part["filenames"])
            for name, size in zip(part["filenames"], sizes, strict=True):
                found.add(directory, _split_in(split) or split, name, size)
            found.label = f"json.{part['alt_label']}" if part.get("alt_label") else found.label
    if not found.names and path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.name.endswith(_SHARD_SUFFIXES) and not file.name.startswith(".") and file.is_file():
                found.add(directory, None, file.relative_to(directory).as_posix(), None)
    if not found.splits:
        listed = f": {len(found.absent)} are listed but not there, such as {found.absent[0]}" if found.absent else ""
        raise ValueError(f"{path} holds no shards ({', '.join(_SHARD_SUFFIXES)}){listed}; fetch them first")
    return found


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # it is not a list, whatever it is
    return content if isinstance(content, dict) else {}


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


def _scan(directory: Path, found: _Found, places: Sequence[str], num_workers: int) -> dict[str, _Scan]:
    names = [name for shards in found.splits.values() for name in shards]
    scans: dict[str, _Scan] = {}
    task = functools.partial(_scan_shard, directory, places)
    with (
        tqdm(total=len(names), unit="shard", desc="reading") as bar,
        closing(run_parallel(task, names, num_workers)) as results,
    ):
        for scan in results:
            scans[scan.shard.name] = scan
            if scan.shard.num_samples != found.sizes.get(scan.shard.name, scan.shard.num_samples):
                raise ValueError(
                    f"shard {scan.shard.name} holds {scan.shard.num_samples} images, its list says "
                    f"{found.sizes[scan.shard.name]}: fetch the shard again"
                )
            bar.update()
    return scans


def _scan_shard(directory: Path, places: Sequence[str], name: str) -> _Scan:
    """Runs in a worker."""
    check_stop()
    values: dict[str, Counter] = {place: Counter() for place in places if place != "none"}
    without_image = []
    num_samples = 0
    try:
        content = shard_content(shard_url(directory, Shard(name, 0, "")))
        samples = read_samples(content)
        for key, members in samples.items():
            if not has_image(members):
                without_image.append(key)
                continue
            num_samples += 1
            for place, counts in values.items():
                counts[label_value(place, key, members)] += 1
        checksum = hashlib.sha256(content).hexdigest()
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise ValueError(
            f"cannot read shard {name} of {directory}: {error}. Fetch it again, or move it away to do without"
        ) from error
    return _Scan(Shard(name, num_samples, checksum), values, without_image)


def _say_what_is_left_out(found: _Found, scans: Mapping[str, _Scan]) -> None:
    if found.absent:
        print(f"left out: {len(found.absent)} listed shards that are not there, such as {found.absent[0]}")
    empty = [name for name, scan in scans.items() if not scan.shard.num_samples]
    if len(empty) == len(scans):
        raise ValueError(f"none of the {len(scans)} shards holds an image, such as {empty[0]}")
    if empty:
        print(f"left out: {len(empty)} shards without images, such as {empty[0]}")
    keys = [f"{key} of {name}" for name, scan in scans.items() for key in scan.without_image]
    if keys:
        print(f"left out: {len(keys)} samples without an image, such as {keys[0]}")


def _hold_out(splits: dict[str, list[Shard]], val_shards: int) -> dict[str, list[Shard]]:
    if not val_shards:
        return splits
    if "val" in splits or len(splits.get("train", [])) <= val_shards:
        counts = {split: len(shards) for split, shards in splits.items()}
        raise ValueError(f"val_shards is {val_shards}, but the splits have {counts} shards; lower it, or leave it out")
    return splits | {"train": splits["train"][:-val_shards], "val": splits["train"][-val_shards:]}


def _choose_label(scans: Iterable[_Scan], places: Sequence[str]) -> tuple[str | None, Counter]:
    """The first place where all samples have a label, and how often each value stands there."""
    if places == ("none",):
        return None, Counter()
    counts = {place: sum((scan.values[place] for scan in scans), Counter()) for place in places}
    for place in places:
        missing, classes = counts[place].pop(None, 0), len(counts[place])
        if missing and (len(places) == 1 or (place == "cls" and classes)):
            raise ValueError(
                f"{missing:,} of {missing + counts[place].total():,} samples have no label at {place}; say --label "
                "json.FIELD, key or none"
            )
        # A name that nothing else says to be a class is one only if few samples make many: not image_1, image_2.
        told = len(places) == 1 or place != "key" or 1 < classes <= counts[place].total() / 2
        told = told or all(map(WORDNET_ID.fullmatch, counts[place]))
        if not missing and classes and told:
            return place, counts[place]
    return None, Counter()


def _class_names(place: str, values: Counter, file: str | None) -> list[str]:
    numbers, words = ([value for value in values if type(value) is kind] for kind in (int, str))
    named = [] if file is None else [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    if numbers and words:
        raise ValueError(f"labels at {place} are numbers ({numbers[0]}) and words ({words[0]!r}); say --label")
    if words:
        if unknown := sorted(set(words) - set(named)) if named else []:
            raise ValueError(f"{file} does not name the class {unknown[0]!r}, which shards have at {place}")
        return named or in_class_order(words)
    limit = len(named) or _MANY_CLASSES
    if min(numbers) < 0 or max(numbers) >= limit:
        raise ValueError(f"labels at {place} are {min(numbers)} to {max(numbers)}, must be in [0, {limit - 1}]")
    if absent := sorted(set(range(max(numbers) + 1)) - set(numbers)):
        print(f"no sample has the label {', '.join(map(str, absent[:5]))}{' ...' if len(absent) > 5 else ''}")
    return named or [str(number) for number in range(max(numbers) + 1)]
