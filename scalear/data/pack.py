"""`scalear data pack`: images into tar shards with an index."""

import contextlib
import errno
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

from tqdm import tqdm

from scalear.data.imaging import ImageFormat, center_crop, encode, standardise
from scalear.data.index import INDEX_NAME, DatasetIndex, Shard
from scalear.data.parallel import check_stop, run_parallel
from scalear.data.progress import PackProgress
from scalear.data.shards import ShardFile
from scalear.data.sources import Entry, ImageSource, Listing
from scalear.hardware.cpus import allowed_cpus
from scalear.idle_settings import refuse_idle

_log = logging.getLogger(__name__)


def pack(
    source: ImageSource,
    output_dir: str,
    image_size: int,
    image_channels: Literal[1, 3] | None = None,
    image_format: ImageFormat = "png",
    quality: int = 95,
    shard_size: int = 1000,
    compress: bool = False,
    name: str | None = None,
    seed: int = 0,
    max_bad_fraction: float = 0.0,
    num_workers: int | None = None,
) -> DatasetIndex:
    """Pack images into tar shards.

    Every image is turned upright, laid over white where transparent, cut by the centre crop of ADM and encoded. Equal
    input and arguments give equal bytes. A run that was killed or interrupted continues when it is started again.

    Args:
        source: Where the images come from.
        output_dir: Folder to write; made if needed.
        image_size: Side of the packed square images in pixels.
        image_channels: 1 (grey) or 3 (RGB). Default: grey for Fashion-MNIST, RGB for folders.
        image_format: How to encode images. PNG is lossless; WebP has no grey.
        quality: Of JPEG and WebP, 1 to 100.
        shard_size: Images per shard. Make at least as many shards as there are readers (ranks x workers).
        compress: Write .tar.gz. Worth it for tiny images only.
        name: Of the dataset. Default: the name of `output_dir`.
        seed: Of the order of the images and of the choice of validation images.
        max_bad_fraction: Part of all images that may be unreadable; these are named and left out.
        num_workers: Processes; 0 works in this one. Default: one per CPU that it may use.

    Returns:
        The index that was written.

    Raises:
        ValueError: The arguments, the source or the state of `output_dir` do not allow it; or images are unreadable.
        OSError: The disk is full, or `output_dir` cannot be written.
    """
    for argument, value, low, high in (
        ("image_size", image_size, 1, 1 << 16),
        ("quality", quality, 1, 100),
        ("shard_size", shard_size, 1, 10**9),
        ("max_bad_fraction", max_bad_fraction, 0, 1),
        ("num_workers", num_workers or 0, 0, 1 << 10),
    ):
        if not low <= value <= high:
            raise ValueError(f"{argument} is {value}, must be in [{low}, {high}]")
    if image_format == "png":
        refuse_idle(pack, "image_format is png, which loses nothing", quality=quality)
    channels = image_channels or source.image_channels
    if image_format == "webp" and channels == 1:
        raise ValueError("WebP cannot store grey images; choose image_format png or jpg, or image_channels 3")
    directory = Path(output_dir)
    if (directory / INDEX_NAME).exists():
        raise ValueError(f"{directory} holds a finished dataset; delete it or choose another output_dir")

    listing = source.listing(seed)
    print_classes(listing.class_names)
    recipe = _Recipe(image_size, channels, image_format, quality)
    num_images = sum(map(len, listing.splits.values()))
    max_bad = int(max_bad_fraction * num_images)
    tasks = _plan(source, recipe, listing, directory, shard_size, ".tar.gz" if compress else ".tar", max_bad)
    settings = asdict(recipe) | {"shard_size": shard_size, "compress": compress, "seed": seed}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        progress = PackProgress(directory, settings | {"images": _digest(listing)}, [task.path.name for task in tasks])
        shards = _write_shards(tasks, progress, max_bad, allowed_cpus() if num_workers is None else num_workers)
        splits = {split: [shards[task.path] for task in tasks if task.split == split] for split in listing.splits}
        index = DatasetIndex(
            name or directory.resolve().name, "images", image_size, channels, listing.class_names, splits
        )
        index.save(directory)
        progress.remove()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"the disk is full, {directory} is unfinished; free some space and run the same command again, "
            "finished shards are kept",
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{directory} is unfinished; run the same command again to continue") from None
    return index


def print_classes(class_names: Sequence[str]) -> None:
    """Say which label means which class, while it can still be changed."""
    print("label -> class" if class_names else "no classes")
    for label, name in enumerate(class_names):
        print(f"{label:5} -> {name}")


@dataclass(frozen=True)
class _Recipe:
    """How an image is made."""

    image_size: int
    image_channels: int
    image_format: ImageFormat
    quality: int


@dataclass(frozen=True)
class _ShardTask:
    """All that a worker needs to write one shard."""

    source: ImageSource
    recipe: _Recipe
    path: Path
    split: str
    entries: Sequence[Entry]
    max_bad: int


@dataclass(frozen=True)
class _Packed:
    """A shard that is in place, and what had to be left out of it."""

    task: _ShardTask
    shard: Shard
    bad: list[str]


def _plan(
    source: ImageSource, recipe: _Recipe, listing: Listing, directory: Path, size: int, suffix: str, max_bad: int
) -> list[_ShardTask]:
    tasks = []
    for split, entries in listing.splits.items():
        for number, start in enumerate(range(0, len(entries), size)):
            path = directory / f"{split}-{number:05d}{suffix}"
            tasks.append(_ShardTask(source, recipe, path, split, entries[start : start + size], max_bad))
    return tasks


def _write_shards(
    tasks: Sequence[_ShardTask], progress: PackProgress, max_bad: int, num_workers: int
) -> dict[Path, Shard]:
    num_images = sum(len(task.entries) for task in tasks)
    shards, bad = {}, []
    with tqdm(total=num_images, unit="img", desc="packing") as bar:
        for task in tasks:
            if (shard := progress.finished(task.path)) is not None:
                shards[task.path] = shard
                bar.update(len(task.entries))
        missing = [task for task in tasks if task.path not in shards]
        with contextlib.closing(run_parallel(_write_shard, missing, num_workers)) as results:
            for packed in results:
                shards[packed.task.path] = packed.shard
                bad += packed.bad
                if len(bad) > max_bad:
                    _refuse(bad, f"at most {max_bad} are allowed")
                if not packed.bad:  # else another run reads the shard's images again, perhaps repaired
                    progress.record(packed.shard)
                bar.update(len(packed.task.entries))
    for image in bad:
        _log.warning("left out unreadable image %s", image)
    return shards


def _write_shard(task: _ShardTask) -> _Packed:
    """Runs in a worker."""
    bad, recipe = [], task.recipe
    with ShardFile(task.path) as shard:
        for entry in task.entries:
            check_stop()
            try:
                image = standardise(task.source.image(entry), recipe.image_channels)
                image = center_crop(image, recipe.image_size)
                members = {recipe.image_format: encode(image, recipe.image_format, recipe.quality)}
            except Exception as error:  # decoders raise nearly anything on broken bytes
                bad.append(f"{entry.location} ({type(error).__name__}: {error})")
                continue
            if entry.label is not None:
                members["cls"] = str(entry.label).encode()
            shard.write(entry.key, members)
        if len(bad) > task.max_bad:  # refused inside the block, so the shard is dropped
            _refuse(bad, f"at most {task.max_bad} are allowed")
        if len(bad) == len(task.entries):
            _refuse(bad, f"which leaves nothing of {task.path.name}")
    return _Packed(task, shard.result, bad)


def _refuse(bad: Sequence[str], why: str) -> NoReturn:
    named = "".join(f"\n  {image}" for image in bad[:50]) + ("\n  ..." if len(bad) > 50 else "")
    raise ValueError(
        f"{len(bad)} unreadable images so far, {why}; repair them, or raise --max_bad_fraction to leave them out:"
        + named
    )


def _digest(listing: Listing) -> str:
    """Identifies which images are packed in which order."""
    digest = hashlib.sha256(repr(listing.class_names).encode())
    for split, entries in listing.splits.items():
        for entry in entries:
            digest.update(f"{split}/{entry.key}/{entry.label}\n".encode())
    return digest.hexdigest()
