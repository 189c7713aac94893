"""Which images to sample, and the files that hold them."""

from dataclasses import dataclass
from pathlib import Path

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
    """Labels of the images to sample; image i of the list uses the random numbers of (seed, i), always."""

    num_per_class: int = 10
    """Images of each class, in label order."""
    classes: list[int] | None = None
    """Classes to sample; all by default."""
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
        if self.num_per_class < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_per_class and batch_size must be at least 1, got {self.num_per_class}, {self.batch_size}"
            )
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
            every_class = range(num_classes) if num_classes else [0]  # without classes, the null class
            classes = every_class if self.classes is None else self.classes
            labels = [label for label in classes for _ in range(self.num_per_class)]
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
    """

    def __init__(self, folder: str | Path, labels: Tensor, trainer: Trainer) -> None:
        self.folder = Path(folder)
        self.labels = labels.numpy()
        self._trainer = trainer
        self._partial = self.folder / "samples.partial.npy"
        self._images: np.memmap | None = None

    def add(self, index_B: Tensor, image_BCHW: Tensor) -> None:
        """Store uint8 images at their places."""
        image_BHWC = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        if self._images is None:
            if self._trainer.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
                shape = (len(self.labels), *image_BHWC.shape[1:])
                np.lib.format.open_memmap(self._partial, "w+", np.uint8, shape).flush()
            self._trainer.strategy.barrier("sample store")
            self._images = np.load(self._partial, mmap_mode="r+")
        self._images[index_B.cpu().numpy()] = image_BHWC

    def close(self, request: SampleRequest) -> NDArray[np.uint8] | None:
        """Write `samples.npz` and `grid.png`; rank 0 gets the images (N, H, W, C), the others None."""
        self._images.flush()
        self._trainer.strategy.barrier("samples complete")
        if not self._trainer.is_global_zero:
            return None
        images = np.array(self._images)
        save_samples(self.folder / "samples.npz", images, self.labels)
        save_png(self.folder / "grid.png", sample_grid(images, self.labels, request))
        self._partial.unlink()
        return images


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
