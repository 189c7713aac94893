"""Which images to sample, and the files that hold them."""

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from scalear.data.plan import EvalBatches
from scalear.evaluation.images import make_grid, save_png, save_samples
from scalear.scales import ScaleSchedule


@dataclass
class SampleRequest:
    """Labels of the images to sample; image i of the list uses the random numbers of (seed, i), always.

    The list goes in rounds: one image of each class, then another of each that has more to come. So every part of it
    has all classes alike, as ADM's Inception Score needs, which is taken over splits of 5,000 images.
    """

    num_per_class: int | dict[int, int] = 10
    """Images of each class: one number for all, or the number of each class, as in {3: 10, 7: 5}, and no others."""
    classes: list[int] | None = None
    """Classes to sample, in this order; all by default."""
    label_file: str | None = None
    """Text file with one label per line, instead of the two above."""
    scales: str | None = None
    """Scales of the images, as in 1,2,4,8; by default those that the generator is built for."""
    batch_size: int = 100
    """Images at a time and rank; changes memory and speed only."""
    seed: int = 0
    """First part of every image's seed."""
    grid_columns: int | None = None
    """Columns of grid.png; by default one per class, with as many rows as there are images of it."""
    grid_rows: int = 10
    """Most rows of grid.png; further images are in samples.npz only."""

    def __post_init__(self) -> None:
        counts = self.num_per_class.values() if isinstance(self.num_per_class, dict) else [self.num_per_class]
        if min(counts, default=0) < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_per_class and batch_size must be at least 1, got {self.num_per_class}, {self.batch_size}"
            )
        if isinstance(self.num_per_class, dict) and self.classes is not None:
            raise ValueError(
                f"num_per_class {self.num_per_class} says which classes to sample already: leave out classes "
                f"{self.classes}"
            )
        if self.label_file is not None and (self.classes is not None or isinstance(self.num_per_class, dict)):
            raise ValueError(f"label_file {self.label_file} holds every label: leave out classes and num_per_class")
        if twice := [label for label, count in Counter(self.classes).items() if count > 1]:
            raise ValueError(f"classes {self.classes} name {twice[0]} twice: num_per_class says how many of each")
        if self.scales is not None:
            ScaleSchedule.parse(self.scales)

    def schedule(self, default: ScaleSchedule) -> ScaleSchedule:
        """The scales to sample."""
        return default if self.scales is None else ScaleSchedule.parse(self.scales)

    def labels(self, num_classes: int) -> Tensor:
        """The labels to sample, (N,) int64.

        Args:
            num_classes: Classes of the model; this number itself is the null class.

        Raises:
            ValueError: A label is out of range, or the file is missing or not a list of integers.
        """
        if self.label_file is not None:
            path = Path(self.label_file)
            if not path.is_file():
                raise ValueError(f"label file {path} does not exist")
            try:
                labels = [int(line) for line in path.read_text().split()]
            except ValueError as error:
                raise ValueError(f"label file {path} must hold one integer per line: {error}") from None
        else:
            counts = self.num_per_class
            if not isinstance(counts, dict):
                every_class = range(num_classes) if num_classes else [0]  # without classes, the null class
                counts = dict.fromkeys(every_class if self.classes is None else self.classes, counts)
            rounds = range(max(counts.values(), default=0))
            labels = [label for number in rounds for label, count in counts.items() if number < count]
        bad = [label for label in labels if not 0 <= label <= num_classes]
        if bad or not labels:
            named = f"label {bad[0]} is out of range" if bad else "no labels to sample"
            raise ValueError(
                f"{named}: the model knows classes 0..{num_classes - 1} (and {num_classes}, the null class)"
            )
        return torch.tensor(labels)

    def loader(self, num_classes: int, rank: int, world_size: int) -> DataLoader:
        """Batches (index_B, label_B) of one rank."""
        labels = self.labels(num_classes)
        batches = EvalBatches(len(labels), self.batch_size, rank, world_size)
        return DataLoader(list(enumerate(labels.tolist())), batch_sampler=batches)


class SampleStore:
    """Collects the images of all ranks in one file on disk, so that no process holds more than a batch.

    Args:
        folder: Gets `samples.npz` and `grid.png`.
        labels: (N,) of all images.
        trainer: Knows the ranks, which must share the folder.

    Raises:
        ValueError: The trainer is limited to a part of the batches.
    """

    def __init__(self, folder: str | Path, labels: Tensor, trainer: Trainer) -> None:
        stage = "test" if trainer.testing else "predict"
        limit = getattr(trainer, f"limit_{stage}_batches")
        if isinstance(limit, int) or limit < 1:
            raise ValueError(
                f"trainer.limit_{stage}_batches (or fast_dev_run) would leave out samples that are asked for: "
                "ask for fewer with samples.num_per_class or samples.classes"
            )
        self.path = Path(folder, "samples.npz")
        self._labels = labels.numpy()
        self._trainer = trainer
        self._partial = self.path.with_name("samples.partial.npy")
        self._file: BinaryIO | None = None

    def add(self, index_B: Tensor, image_BCHW: Tensor) -> None:
        """Store uint8 images at their places."""
        image_BHWC = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        if self._file is None:
            self._open(image_BHWC.shape[1:])
        for index, image in zip(index_B.tolist(), image_BHWC, strict=True):
            self._file.seek(self._start + index * image.nbytes)
            self._file.write(image.tobytes())
        self._file.flush()

    def close(self, request: SampleRequest) -> None:
        """Write `samples.npz` and `grid.png`, on rank 0, once all ranks are here."""
        self._file.close()
        self._trainer.strategy.barrier("samples complete")
        if not self._trainer.is_global_zero:
            return
        images = np.load(self._partial, mmap_mode="r")
        save_samples(self.path, images, self._labels)
        save_png(self.path.with_name("grid.png"), sample_grid(images, self._labels, request))
        self._partial.unlink()

    def _open(self, image_shape: tuple[int, ...]) -> None:
        if self._trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _make_array_file(self._partial, (len(self._labels), *image_shape))
            except OSError as error:
                self._partial.unlink(missing_ok=True)
                raise OSError(
                    f"cannot make room for {len(self._labels):,} samples of {math.prod(image_shape):,} bytes in "
                    f"{self.path.parent}: {error}. Free some space, or sample fewer"
                ) from error
        self._trainer.strategy.barrier("sample store")
        self._file = open(self._partial, "r+b")
        np.lib.format.read_magic(self._file)
        np.lib.format.read_array_header_1_0(self._file)
        self._start = self._file.tell()


def _make_array_file(path: Path, shape: tuple[int, ...]) -> None:
    """An .npy file of zeros, its space reserved: a full disk shall not be noticed after hours of sampling."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        size = file.tell() + math.prod(shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def sample_grid(images: NDArray[np.uint8], labels: NDArray[np.int64], request: SampleRequest) -> NDArray[np.uint8]:
    """One column per class (or `grid_columns` images in order), enlarged to be seen."""
    classes = np.unique(labels)
    scale = max(1, 64 // images.shape[1])
    if request.grid_columns is not None or len(classes) > 32:
        columns = request.grid_columns or 10
        return make_grid(images[: columns * request.grid_rows], columns, scale=scale)
    members = [np.flatnonzero(labels == label) for label in classes]
    rows = min(request.grid_rows, *(len(member) for member in members)) if len(members) > 1 else 1
    if len(members) == 1:
        return make_grid(images[: 10 * request.grid_rows], 10, scale=scale)
    order = [member[row] for row in range(rows) for member in members]
    return make_grid(images[order], len(classes), scale=scale)
