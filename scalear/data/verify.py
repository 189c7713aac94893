"""`scalear data verify` and `scalear data stats`: what is in a dataset, and whether all of it is sound."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from scalear.data.imaging import IMAGE_EXTENSIONS
from scalear.data.index import DatasetIndex, Shard, shard_url
from scalear.data.parallel import check_stop, run_parallel
from scalear.data.shards import HashingReader, read_samples
from scalear.hardware.cpus import allowed_cpus


def verify(data_dir: str, num_workers: int | None = None) -> None:
    """Read a whole dataset again and name every bad shard and sample.

    Checks the shards' checksums and sample counts against the index, decodes every image or block of latents and
    compares size, channels, types and labels with what the index says.

    Args:
        data_dir: Folder with index.json.
        num_workers: Processes; 0 works in this one. Default: one per CPU that it may use.

    Raises:
        ValueError: Something is wrong; everything that is has been printed.
    """
    index = DatasetIndex.load(data_dir)
    reports = sorted(_inspect_all(data_dir, index, _check_shard, num_workers), key=lambda report: report.shard.name)
    problems = {report.shard.name: report.problems for report in reports if report.problems}
    strays = _unlisted_shards(Path(data_dir), index)
    problems |= {name: ["not in the index; delete it, or pack again"] for name in strays}
    for name, found in problems.items():
        for problem in found:
            print(f"{name}: {problem}")
    if problems:
        raise ValueError(
            f"{data_dir}: {sum(map(len, problems.values()))} problems in {len(problems)} shards "
            f"({', '.join(problems)}); fetch these shards again, or delete the dataset and pack again"
        )
    print(f"{data_dir}: {len(reports)} shards with {sum(report.num_samples for report in reports):,} samples are sound")


def stats(data_dir: str, num_workers: int | None = None) -> None:
    """Print counts per split and class, sizes and bytes of a dataset.

    Args:
        data_dir: Folder with index.json.
        num_workers: Processes; 0 works in this one. Default: one per CPU that it may use.

    Raises:
        ValueError: The dataset cannot be read.
    """
    index = DatasetIndex.load(data_dir)
    reports = {report.shard.name: report for report in _inspect_all(data_dir, index, _count_shard, num_workers)}
    unreadable = [f"{name} ({report.problems[0]})" for name, report in reports.items() if report.problems]
    if unreadable:
        raise ValueError(f"cannot read {', '.join(unreadable)}; `scalear data verify {data_dir}` tells more")
    print(f"{index.name}: {index.kind}, {index.image_size}x{index.image_size}x{index.image_channels}")
    if index.latents is not None:
        shape = "x".join(map(str, index.latents.moments_shape))
        print(f"moments {shape} {index.latents.dtype} of {index.latents.tokenizer} {index.latents.fingerprint[:12]}")
    labels = {}
    for split, shards in index.splits.items():
        labels[split] = sum((reports[shard.name].labels for shard in shards), Counter())
        num_bytes = sum(reports[shard.name].num_bytes for shard in shards)
        print(f"{split}: {index.num_samples(split):,} samples, {len(shards)} shards, {num_bytes / 1e6:,.1f} MB")
    if not index.class_names:
        print("no classes")
        return
    width = max(map(len, ("class", *index.class_names)))
    print(f"\n{'label':>5}  {'class':{width}}" + "".join(f"  {split:>9}" for split in index.splits))
    for label, name in enumerate(index.class_names):
        print(f"{label:5}  {name:{width}}" + "".join(f"  {labels[split][label]:9,}" for split in index.splits))


@dataclass(frozen=True)
class _Task:
    """One shard to read in a worker."""

    url: str
    shard: Shard
    index: DatasetIndex


@dataclass
class _Report:
    """What reading one shard found."""

    shard: Shard
    problems: list[str]
    labels: Counter[int]
    num_bytes: int = 0

    @property
    def num_samples(self) -> int:
        return self.labels.total()


def _inspect_all(
    data_dir: str, index: DatasetIndex, inspect: Callable[[_Task], _Report], num_workers: int | None
) -> Iterator[_Report]:
    shards = [shard for shards in index.splits.values() for shard in shards]
    tasks = [_Task(shard_url(data_dir, shard), shard, index) for shard in shards]
    num_workers = allowed_cpus() if num_workers is None else num_workers
    with (
        tqdm(total=sum(shard.num_samples for shard in shards), unit="sample", desc="reading", leave=False) as bar,
        contextlib.closing(run_parallel(inspect, tasks, num_workers)) as reports,
    ):
        for report in reports:
            yield report
            bar.update(report.shard.num_samples)


def _unlisted_shards(directory: Path, index: DatasetIndex) -> list[str]:
    listed = {shard.name for shards in index.splits.values() for shard in shards}
    return sorted({path.name for pattern in ("*.tar", "*.tar.gz") for path in directory.glob(pattern)} - listed)


def _count_shard(task: _Task) -> _Report:
    """Labels and bytes only; decodes no image."""
    return _read_shard(task, _image_label if task.index.kind == "images" else _block_labels, checksum=False)


def _check_shard(task: _Task) -> _Report:
    """Everything."""
    return _read_shard(task, _checked_image if task.index.kind == "images" else _checked_block, checksum=True)


def _read_shard(
    task: _Task, labels_of: Callable[[dict[str, bytes], DatasetIndex], list[int]], checksum: bool
) -> _Report:
    from webdataset import gopen  # here, for it imports torch, which help and packing would wait for

    report = _Report(task.shard, [], Counter())
    try:
        with contextlib.closing(gopen(task.url)) as stream:
            reader = HashingReader(stream)
            _read_members(reader, task.index, labels_of, report)
            sha256 = reader.sha256()
            report.num_bytes = reader.num_bytes
    except OSError as error:
        report.problems.append(f"cannot be read: {_describe(error)}")
        return report
    if not report.problems and report.num_samples != task.shard.num_samples:
        report.problems.append(f"holds {report.num_samples} samples, the index says {task.shard.num_samples}")
    if checksum and sha256 != task.shard.sha256:
        report.problems.insert(0, f"SHA-256 is {sha256}, the index says {task.shard.sha256}")
    return report


def _read_members(
    reader: HashingReader,
    index: DatasetIndex,
    labels_of: Callable[[dict[str, bytes], DatasetIndex], list[int]],
    report: _Report,
) -> None:
    sizes: dict[str, int] = {}  # samples behind each key: 1, or those of a block of latents
    try:
        for key, members in read_samples(reader):
            check_stop()
            if key in sizes:
                report.problems.append(f"sample {key}: its key comes twice")
            try:
                labels = labels_of(members, index)
            except Exception as error:  # decoders raise nearly anything on broken bytes
                report.problems.append(f"sample {key}: {_describe(error)}")
                labels = []
            sizes[key] = len(labels)
            report.labels.update(labels)
    except CancelledError:
        raise
    except Exception as error:  # so do tarfile and gzip
        report.problems.append(f"broken after {len(sizes)} whole samples: {_describe(error)}")
    if index.latents is not None:
        small = [key for key in list(sizes)[:-1] if 0 < sizes[key] != index.latents.block_size]
        report.problems += [f"block {key}: has {sizes[key]} samples, but only the last may be small" for key in small]


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _image_label(members: dict[str, bytes], index: DatasetIndex) -> list[int]:
    if not index.class_names:
        return [-1]
    if "cls" not in members:
        raise ValueError("has no label (.cls), though the dataset has classes")
    return [int(members["cls"])]


def _checked_image(members: dict[str, bytes], index: DatasetIndex) -> list[int]:
    labels = _image_label(members, index)
    _check_labels(labels, index)
    contents = [content for extension, content in members.items() if extension.lower() in IMAGE_EXTENSIONS]
    if len(contents) != 1:
        raise ValueError(f"has {len(contents)} images among its members {sorted(members)}, must be 1")
    with Image.open(io.BytesIO(contents[0])) as image:
        image.load()
        found = (*image.size, len(image.getbands()))
    expected = (index.image_size, index.image_size, index.image_channels)
    if found != expected:
        raise ValueError(f"width, height and channels are {found}, the index says {expected}")
    return labels


def _block_labels(members: dict[str, bytes], index: DatasetIndex) -> list[int]:
    return _load_array(members, "labels.npy").tolist()


def _checked_block(members: dict[str, bytes], index: DatasetIndex) -> list[int]:
    labels = _load_array(members, "labels.npy")
    if labels.dtype != np.int64 or labels.ndim != 1 or not 1 <= len(labels) <= index.latents.block_size:
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, must be int64 (1 to {index.latents.block_size},)")
    _check_labels(labels.tolist(), index)
    expected = (len(labels), *index.latents.moments_shape)
    for name in ("moments.npy", "flipped.npy"):
        moments = _load_array(members, name)
        if moments.shape != expected or moments.dtype != np.dtype(index.latents.dtype):
            raise ValueError(f"{name} is {moments.dtype} {moments.shape}, must be {index.latents.dtype} {expected}")
        if not np.isfinite(moments).all():
            raise ValueError(f"{name} has values that are not finite")
    keys = json.loads(members["keys.json"]) if "keys.json" in members else None
    if not isinstance(keys, list) or len(keys) != len(labels):
        raise ValueError(f"keys.json must be a list of {len(labels)} names")
    return labels.tolist()


def _load_array(members: dict[str, bytes], name: str) -> np.ndarray:
    if name not in members:
        raise ValueError(f"has no {name} among its members {sorted(members)}")
    return np.load(io.BytesIO(members[name]), allow_pickle=False)


def _check_labels(labels: list[int], index: DatasetIndex) -> None:
    lowest, highest = (0, index.num_classes - 1) if index.class_names else (-1, -1)
    outside = sorted(label for label in labels if not lowest <= label <= highest)
    if outside:
        raise ValueError(f"label {outside[0]} is out of range [{lowest}, {highest}]")
