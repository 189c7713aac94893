"""`scalear data index`: an index for shards that other tools wrote, which are then read where they lie."""

import functools
import hashlib
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from scalear.data.image_tree import in_class_order
from scalear.data.index import INDEX_NAME, DatasetIndex, RawInfo, Shard, shard_url
from scalear.data.pack import print_classes
from scalear.data.parallel import check_stop, run_parallel
from scalear.data.samples import WORDNET_ID, has_image, label_value
from scalear.data.shard_lists import FoundShards, find_shards
from scalear.data.shards import read_samples, shard_content
from scalear.hardware.cpus import allowed_cpus

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
    named = None if class_names is None else _read_names(class_names)
    found = find_shards(path)
    places = _PLACES if label is None else (label,)
    if label is None and found.label is not None:
        places = (found.label,)
    scans = _scan(directory, found, places, allowed_cpus() if num_workers is None else num_workers)
    _say_what_is_left_out(found, scans)
    scans_of = {split: [scans[shard] for shard in shards] for split, shards in found.splits.items()}
    place, values, unlabelled = _choose_label(scans_of, places)
    splits = {
        split: shards
        for split, group in scans_of.items()
        if split not in unlabelled and (shards := [scan.shard for scan in group if scan.shard.num_samples])
    }
    splits = _hold_out(splits, val_shards)
    for split in unlabelled:
        print(f"left out: the split {split}, which has no label at {place}")
    if place is None and named is not None:
        raise ValueError(f"no sample has a label for which {class_names} has a name; say --label, or leave it out")
    names = [] if place is None else _class_names(place, values, named)
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


@dataclass(frozen=True)
class _Scan:
    """What reading one shard found: how often which value stands at each place where a label may be."""

    shard: Shard
    values: Mapping[str, Counter]
    without_image: list[str]


def _scan(directory: Path, found: FoundShards, places: Sequence[str], num_workers: int) -> dict[str, _Scan]:
    names = [name for shards in found.splits.values() for name in shards]
    scans: dict[str, _Scan] = {}
    task = functools.partial(_scan_shard, directory, places)
    with (
        tqdm(total=len(names), unit="shard", desc="reading") as bar,
        closing(run_parallel(task, names, num_workers)) as results,
    ):
        for scan in results:
            scans[scan.shard.name] = scan
            num_images, listed = scan.shard.num_samples, found.sizes.get(scan.shard.name)
            if listed is not None and listed not in (num_images, num_images + len(scan.without_image)):
                raise ValueError(
                    f"shard {scan.shard.name} holds {num_images} images, its list says {listed}: fetch the shard again"
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


def _say_what_is_left_out(found: FoundShards, scans: Mapping[str, _Scan]) -> None:
    if found.absent:
        print(f"left out: {len(found.absent)} listed shards that are not there, such as {found.absent[0]}")
    empty = [name for name, scan in scans.items() if not scan.shard.num_samples]
    if len(empty) == len(scans):
        raise ValueError(f"none of the {len(scans)} shards holds a sample with one image, such as {empty[0]}")
    if empty:
        print(f"left out: {len(empty)} shards without images, such as {empty[0]}")
    keys = [f"{key} of {name}" for name, scan in scans.items() for key in scan.without_image]
    if keys:
        print(f"left out: {len(keys)} samples without one image, such as {keys[0]}")


def _hold_out(splits: dict[str, list[Shard]], val_shards: int) -> dict[str, list[Shard]]:
    if not val_shards:
        return splits
    if "val" in splits or len(splits.get("train", [])) <= val_shards:
        counts = {split: len(shards) for split, shards in splits.items()}
        raise ValueError(f"val_shards is {val_shards}, but the splits have {counts} shards; lower it, or leave it out")
    return splits | {"train": splits["train"][:-val_shards], "val": splits["train"][-val_shards:]}


def _choose_label(scans: Mapping[str, Sequence[_Scan]], places: Sequence[str]) -> tuple[str | None, Counter, list[str]]:
    """The first place where samples have labels, how often each value stands there, and the splits that have none.

    The split "train" must have them, and others may lack them as a whole, as the test images of ImageNet do.
    """
    for place in () if places == ("none",) else places:
        counts = {split: sum((scan.values[place] for scan in group), Counter()) for split, group in scans.items()}
        by_wordnet = place == "key" and any(_is_wordnet_id(value) for found in counts.values() for value in found)
        if by_wordnet:  # then other names are no classes
            counts = {split: _only_wordnet_ids(found) for split, found in counts.items()}
        labelled = [split for split, found in counts.items() if split == "train" or found.keys() - {None}]
        values = sum((counts[split] for split in labelled or counts), Counter())
        missing = values.pop(None, 0)
        if missing and (len(places) == 1 or (values and (place != "key" or by_wordnet))):
            raise ValueError(
                f"{missing:,} of {missing + values.total():,} samples have no label at {place}; say --label "
                "json.FIELD, key or none"
            )
        # A name that nothing else says to be a class is one only if few samples make many: not image_1, image_2.
        told = len(places) == 1 or place != "key" or by_wordnet or 1 < len(values) <= values.total() / 2
        if values and not missing and told:
            return place, values, [split for split in counts if split not in labelled]
    return None, Counter(), []


def _is_wordnet_id(value: int | str | None) -> bool:
    return isinstance(value, str) and WORDNET_ID.fullmatch(value) is not None


def _only_wordnet_ids(values: Counter) -> Counter:
    found = Counter({value: count for value, count in values.items() if _is_wordnet_id(value)})
    return found + Counter({None: values.total() - found.total()})


def _read_names(file: str) -> list[str]:
    try:
        return [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"class_names {file} is no text file that can be read: {error}") from error


def _class_names(place: str, values: Counter, named: list[str] | None) -> list[str]:
    numbers, words = ([value for value in values if type(value) is kind] for kind in (int, str))
    if numbers and words:
        raise ValueError(f"labels at {place} are numbers ({numbers[0]}) and words ({words[0]!r}); say --label")
    if words:
        if unknown := sorted(set(words) - set(named)) if named else []:
            raise ValueError(f"class_names does not name the class {unknown[0]!r}, which shards have at {place}")
        return named or in_class_order(words)
    limit = len(named) if named else _MANY_CLASSES
    if min(numbers) < 0 or max(numbers) >= limit:
        raise ValueError(f"labels at {place} are {min(numbers)} to {max(numbers)}, must be in [0, {limit - 1}]")
    if absent := sorted(set(range(max(numbers) + 1)) - set(numbers)):
        print(f"no sample has the label {', '.join(map(str, absent[:5]))}{' ...' if len(absent) > 5 else ''}")
    return named or [str(number) for number in range(max(numbers) + 1)]
