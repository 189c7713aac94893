"""`scalear data verify` and `scalear data stats`: what is in a dataset, and whether all of it is sound."""

import contextlib
import gzip
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scalear.data.index import DatasetIndex, Shard, shard_url
from scalear.data.parallel import check_stop, run_parallel
from scalear.data.reader import LatentBlock
from scalear.data.samples import Members, SampleReader, has_image
from scalear.data.shards import Content, is_compressed, read_members, shard_content
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
    strays = [] if index.raw is not None else _unlisted_shards(Path(data_dir), index)  # which are others' affair
    problems |= {name: ["not in the index; delete it, or pack again"] for name in strays}
    for name, found in problems.items():
        for problem in found:
            print(f"{name}: {problem}")
    if problems:
        remedy = "delete the dataset and pack again" if index.raw is None else "set data.max_bad_fraction above 0"
        raise ValueError(
            f"{data_dir}: {sum(map(len, problems.values()))} problems in {len(problems)} shards "
            f"({', '.join(problems)}); fetch these shards again, or {remedy}"
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
    made = "" if index.raw is None else ", cropped when read"
    print(f"{index.name}: {index.kind}, {index.image_size}x{index.image_size}x{index.image_channels}{made}")
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
    return _read_shard(task, thorough=False)


def _check_shard(task: _Task) -> _Report:
    """Everything."""
    return _read_shard(task, thorough=True)


def _read_shard(task: _Task, thorough: bool) -> _Report:
    report = _Report(task.shard, [], Counter())
    labels_of = _LatentLabels(task.index, thorough) if task.index.latents else _ImageLabels(task.index, thorough)
    try:
        content = shard_content(task.url)
    except OSError as error:
        report.problems.append(f"cannot be read: {_describe(error)}")
        return report
    report.num_bytes = len(content)
    _read_members(content, task.index, labels_of, report)
    if not report.problems and report.num_samples != task.shard.num_samples:
        report.problems.append(f"holds {report.num_samples} samples, the index says {task.shard.num_samples}")
    if thorough and (sha256 := hashlib.sha256(content).hexdigest()) != task.shard.sha256:
        report.problems.insert(0, f"SHA-256 is {sha256}, the index says {task.shard.sha256}")
    return report


def _read_members(
    content: Content, index: DatasetIndex, labels_of: Callable[[str, dict[str, memoryview]], list[int]], report: _Report
) -> None:
    samples: dict[str, dict[str, memoryview]] = {}
    sizes: dict[str, int] = {}  # samples behind each key: 1, or those of a block of latents
    twice, broken = set(), None
    try:
        for key, extension, member in read_members(gzip.decompress(content) if is_compressed(content) else content):
            check_stop()
            if extension in samples.setdefault(key, {}):
                twice.add(key)
            samples[key][extension] = member
    except CancelledError:
        raise
    except Exception as error:  # tarfile and gzip raise nearly anything on broken bytes
        broken = _describe(error)
    for key, members in samples.items():
        check_stop()
        if index.raw is not None and not has_image(members):
            continue
        try:
            if key in twice:
                raise ValueError("its key comes twice")
            labels = labels_of(key, members)
        except Exception as error:  # so do decoders
            report.problems.append(f"sample {key}: {_describe(error)}")
            labels = []
        sizes[key] = len(labels)
        report.labels.update(labels)
    if broken is not None:
        report.problems.append(f"broken after {len(sizes)} whole samples: {broken}")
    if index.latents is not None:
        small = [key for key in list(sizes)[:-1] if 0 < sizes[key] != index.latents.block_size]
        report.problems += [f"block {key}: has {sizes[key]} samples, but only the last may be small" for key in small]


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


class _ImageLabels:
    """The label of an image sample; decodes the image if it must be `thorough`."""

    def __init__(self, index: DatasetIndex, thorough: bool) -> None:
        self._reader = SampleReader(index)
        self._thorough = thorough

    def __call__(self, key: str, members: Members) -> list[int]:
        label = self._reader.label(key, members)
        if self._thorough:
            self._reader.image(members)
        return [label]


class _LatentLabels:
    """The labels of a block of latents; looks at all of it if it must be `thorough`."""

    def __init__(self, index: DatasetIndex, thorough: bool) -> None:
        self._index = index
        self._thorough = thorough

    def __call__(self, key: str, members: Members) -> list[int]:
        block = LatentBlock.read(members, self._index.latents)
        if self._thorough:
            _check_labels(block.labels, self._index)
            for name in ("moments", "flipped"):
                if not np.isfinite(getattr(block, name)).all():
                    raise ValueError(f"{name}.npy has values that are not finite")
        return block.labels


def _check_labels(labels: list[int], index: DatasetIndex) -> None:
    lowest, highest = (0, index.num_classes - 1) if index.class_names else (-1, -1)
    outside = sorted(label for label in labels if not lowest <= label <= highest)
    if outside:
        raise ValueError(f"label {outside[0]} is out of range [{lowest}, {highest}]")
