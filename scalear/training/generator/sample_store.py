"""The files that hold samples: one of each batch while they are made, one of all when they are complete."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from scalear.evaluation.images import load_samples, make_grid, save_png, save_sample_blocks, save_samples, stored_origin
from scalear.files import write_json
from scalear.training.generator.samples import SampleRequest

_COMPLETE, _GRID, _PARTIAL, _RECORD = "samples.npz", "grid.png", "samples.partial", "origin.json"
_BATCH = re.compile(r"(\d+)-(\d+)\.npz")  # its first and last image

Origin = dict[str, Any]
"""What samples follow from: weights and settings, by dotted names. Equal ones give equal images, up to rounding."""


def sample_origins(folder: str | Path) -> dict[Path, Origin | None]:
    """What the samples in a folder follow from, complete ones and others, by path; None where that is not recorded."""
    complete, grid, partial = (Path(folder, name) for name in (_COMPLETE, _GRID, _PARTIAL))
    found = {path: json.loads(stored_origin(complete) or "null") for path in (complete, grid) if path.exists()}
    if (partial / _RECORD).exists():
        found[partial] = json.loads((partial / _RECORD).read_text())
    return found


class SampleStore:
    """A sample set on disk, which any number of processes make together that share its folder.

    Every batch is written to `samples.partial/` as soon as it is sampled. Whoever comes later, after a job that was
    killed or beside one that runs, finds it there. It does no harm if two write the same batch: files are there
    completely or not at all, and both hold the same images. No process has more than a batch in memory, the one that
    packs them included.

    Args:
        folder: Gets `samples.npz` and `grid.png`.
        label_N: Of all images.
        image_shape: (H, W, C).
        origin: What the samples follow from; None if that is not known, and then nothing that is there is used.
    """

    def __init__(
        self, folder: str | Path, label_N: Tensor, image_shape: tuple[int, int, int], origin: Origin | None
    ) -> None:
        self.path = Path(folder, _COMPLETE)
        self.complete = False
        """Whether all of them are in `samples.npz`."""
        self._partial = Path(folder, _PARTIAL)
        self._labels = label_N.numpy()
        self._image_shape = image_shape
        self._origin = origin

    def check_space(self, anew: bool = False) -> None:
        """A full disk shall not be noticed after hours of sampling.

        Args:
            anew: As of `begin`.

        Raises:
            OSError: The disk is too small for what is missing.
        """
        if self._is_complete() and not anew:
            return
        total, image = len(self._labels), math.prod(self._image_shape)
        missing = sum(map(len, self.missing())) if self._is_known() else total
        folder = self.path.absolute().parent
        above = next(place for place in (folder, *folder.parents) if place.exists())
        need, free = (missing + total) * image, shutil.disk_usage(above).free
        if need > free:
            raise OSError(
                f"{missing:,} samples of {image:,} bytes, and samples.npz, may need {need:,} bytes; {folder} has "
                f"{free:,} left: free some space, or sample fewer"
            )

    def begin(self, anew: bool = False) -> bool:
        """Keep batches of these samples, remove those of others. On one process of a job, before any other method.

        Args:
            anew: Make also samples that are complete.

        Returns:
            Whether they are complete already.

        Raises:
            OSError: The disk is too small for them.
        """
        complete = self._is_complete()
        if complete and not anew:
            rank_zero_info(f"{self.path} holds these samples already; --force makes them anew")
            return True
        self.check_space(anew)
        known = self._is_known()
        if not known:
            for batch in self._batches():
                self._path_of(batch).unlink()
        missing, total = sum(map(len, self.missing())), len(self._labels)
        if missing < total:
            rank_zero_info(f"{self._partial} holds {total - missing:,} of {total:,} samples already")
        if not known:
            write_json(self._partial / _RECORD, self._origin)
        if complete:
            self.path.unlink()
        return False

    def has(self, images: range) -> bool:
        """Whether consecutive images are there. What is damaged of them is removed."""
        if self.complete:
            return True
        for batch in self._batches():
            if _overlap(batch, images):
                try:
                    self._read(batch)
                except ValueError:
                    self._path_of(batch).unlink(missing_ok=True)
        return not any(_overlap(gap, images) for gap in self.missing())

    def add(self, first: int, image_BCHW: Tensor) -> None:
        """Write a batch of uint8 images, whose first one has this place among all."""
        batch = range(first, first + len(image_BCHW))
        image_BHWC = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        save_samples(self._path_of(batch), image_BHWC, self._labels[batch.start : batch.stop])

    def missing(self) -> list[range]:
        """Images that are not there."""
        gaps, end = [], 0
        for batch in [*self._batches(), range(len(self._labels), len(self._labels))]:
            if batch.start > end:
                gaps.append(range(end, batch.start))
            end = max(end, batch.stop)
        return gaps

    def pack(self, request: SampleRequest) -> bool:
        """Write `samples.npz` and `grid.png`, or say what is missing. On one process of a job.

        Returns:
            Whether the samples are complete.

        Raises:
            ValueError: A batch is damaged; a further job makes it again.
        """
        if self.complete:
            return True
        if not self._is_complete():  # by another job
            if missing := self.missing():
                rank_zero_info(self._describe(missing))
                return False
            try:
                self._pack(request)
            except (OSError, ValueError):
                if not self._is_complete():  # if they are, another job was quicker, and removed the batches
                    raise
        shutil.rmtree(self._partial, ignore_errors=True)
        return True

    def _pack(self, request: SampleRequest) -> None:
        cells, columns = request.grid(self._labels)
        shown = np.empty((len(cells), *self._image_shape), np.uint8)

        def blocks() -> Iterator[NDArray[np.uint8]]:
            end = 0
            for batch in self._batches():
                if batch.stop > end:
                    images = self._read(batch)[end - batch.start :]  # batches of several sizes overlap
                    inside = (cells >= end) & (cells < batch.stop)
                    shown[inside] = images[cells[inside] - end]
                    end = batch.stop
                    yield images

        packed = self._partial / _COMPLETE  # so that nothing else is left by who is killed here
        save_sample_blocks(packed, blocks(), self._labels, json.dumps(self._origin))
        save_png(self.path.with_name(_GRID), make_grid(shown, columns, scale=max(1, 64 // self._image_shape[0])))
        os.replace(packed, self.path)

    def _is_complete(self) -> bool:
        return self._origin is not None and sample_origins(self.path.parent).get(self.path) == self._origin

    def _is_known(self) -> bool:
        """Whether the batches that are there are of these samples."""
        return self._origin is not None and sample_origins(self.path.parent).get(self._partial) == self._origin

    def _batches(self) -> list[range]:
        """Those that are there, by their first image."""
        matches = filter(None, (_BATCH.fullmatch(path.name) for path in self._partial.glob("*.npz")))
        batches = [range(int(match[1]), int(match[2]) + 1) for match in matches]
        return sorted(batches, key=lambda batch: batch.start)

    def _path_of(self, batch: range) -> Path:
        return self._partial / f"{batch.start:07d}-{batch.stop - 1:07d}.npz"

    def _read(self, batch: range) -> NDArray[np.uint8]:
        path = self._path_of(batch)
        images, labels = load_samples(path)
        if images.shape != (len(batch), *self._image_shape) or (labels != self._labels[batch.start : batch.stop]).any():
            raise ValueError(f"{path} holds other images")
        return images

    def _describe(self, missing: list[range]) -> str:
        shown = ", ".join(f"{gap.start:,}-{gap.stop - 1:,}" for gap in missing[:3])
        return (
            f"{sum(map(len, missing)):,} of {len(self._labels):,} samples are missing: {shown}"
            f"{' and others' if len(missing) > 3 else ''}. Run the parts (samples.part) that hold them, or all of it; "
            f"{self._partial} keeps the others"
        )


def _overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)
