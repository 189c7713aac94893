"""Which images to sample, and who samples them."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from scalear.idle_settings import idle_settings
from scalear.scales import ScaleSchedule


@dataclass
class SampleRequest:
    """Labels of the images to sample; image i of the list uses the random numbers of (seed, i), always.

    The list goes in rounds: one image of each class, then another of each that has more to come. So every part of it
    has all classes alike, as ADM's Inception Score needs, which is taken over splits of 5,000 images.
    """

    num_per_class: int | dict[int, int] | None = None
    """Images of each class: one number for all, or the number of each class, as in {3: 10, 7: 5}, and no others. By
    default `num_images` decides, or else it is 10."""
    num_images: int | None = None
    """Images in all, shared out over the classes, where there is no `num_per_class`."""
    classes: list[int] | None = None
    """Classes to sample, in this order; all by default."""
    label_file: str | None = None
    """Text file with one label per line, instead of the three above."""
    scales: str | None = None
    """Scales of the images, as in 1,2,4,8; by default those that the generator is built for."""
    batch_size: int = 100
    """Images at a time and rank; changes memory and speed, and how results are rounded."""
    part: str = "1/1"
    """Part of the images that this job samples: 3/8 is the third of eight. The job that ends last collects them all."""
    seed: int = 0
    """First part of every image's seed."""
    grid_columns: int | None = None
    """Columns of grid.png; by default one per class, with as many rows as there are images of it."""
    grid_rows: int = 10
    """Most rows of grid.png; further images are in samples.npz only."""

    def __post_init__(self) -> None:
        counts = self.num_per_class.values() if isinstance(self.num_per_class, dict) else [self.num_per_class]
        others = (self.num_images, self.batch_size, self.grid_columns, self.grid_rows)
        given = [count for count in (*counts, *others) if count is not None]
        if not counts or min(given) < 1:
            raise ValueError(
                "num_per_class, num_images, batch_size, grid_columns and grid_rows must be at least 1, got "
                f"{', '.join(map(str, (self.num_per_class, *others)))}"
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
        _ = self._part

    def idle(self) -> list[str]:
        """A line for each setting that the others leave without effect."""
        if self.label_file is None:
            return []
        given = {"num_per_class": self.num_per_class, "num_images": self.num_images}
        return idle_settings(SampleRequest, "label_file says every label", **given)

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
            counts, total = self.num_per_class, None
            if not isinstance(counts, dict):
                every_class = range(num_classes) if num_classes else [0]  # without classes, the null class
                classes = every_class if self.classes is None else self.classes
                if counts is None:
                    total = self.num_images or 10 * len(classes)
                    counts = -(-total // max(1, len(classes)))  # of which the last round may use a part
                counts = dict.fromkeys(classes, counts)
            rounds = range(max(counts.values(), default=0))
            labels = [label for number in rounds for label, count in counts.items() if number < count][:total]
        bad = [label for label in labels if not 0 <= label <= num_classes]
        if bad or not labels:
            named = f"label {bad[0]} is out of range" if bad else "no labels to sample"
            raise ValueError(
                f"{named}: the model knows classes 0..{num_classes - 1} (and {num_classes}, the null class)"
            )
        return torch.tensor(labels)

    def batches(self, num_samples: int, rank: int, world_size: int) -> list[range]:
        """What a rank samples at a time, as places in the list.

        The list is cut into batches from its beginning, whoever samples them: so the same images always share a
        batch, and rounding, which may depend on how many do, is the same however the work was split.
        """
        batches = [
            range(start, min(start + self.batch_size, num_samples)) for start in range(0, num_samples, self.batch_size)
        ]
        number, count = self._part
        return batches[(number - 1) * len(batches) // count : number * len(batches) // count][rank::world_size]

    def loader(self, num_classes: int, rank: int, world_size: int) -> DataLoader:
        """Batches (place of the first image, label_B) of one rank; one without images if there are none for it."""
        label_N = self.labels(num_classes)
        batches = self.batches(len(label_N), rank, world_size) or [range(0)]
        return DataLoader([(batch.start, label_N[batch.start : batch.stop]) for batch in batches], batch_size=None)

    def grid(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Places in the list of what grid.png shows, row by row, and its columns.

        One column per class, where there are two to 32 and no `grid_columns`; otherwise the first images in order.
        """
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if self.grid_columns is not None or not 1 < len(members) <= 32:
            columns = self.grid_columns or 10
            return np.arange(min(len(labels), columns * self.grid_rows)), columns
        rows = min(self.grid_rows, *(len(member) for member in members))
        return np.stack([member[:rows] for member in members], axis=1).flatten(), len(members)

    @property
    def _part(self) -> tuple[int, int]:
        """Number of the part, from 1 on, and how many there are."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise ValueError(f"part {self.part} must be one of 1/N to N/N, such as 3/8")
        return number, count
