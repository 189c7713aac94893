"""What an extractor saw in a set of images, and how it is collected in one pass.

Legend: N images, B batch, C channels, H W pixels, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scalear.distributed.patient_ranks import ALONE, PatientRanks
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ImageSet
from scalear.evaluation.statistics import FeatureStatistics, RunningStatistics


@dataclass(frozen=True)
class Needs:
    """What is to be kept of a set of images.

    Attributes:
        points: Names of features whose vectors are kept, 4 F bytes per image.
        statistics: Names of features of which mean and covariance are enough, 8 F^2 bytes for all images.
        labels: Whether every image must have a label.
        count: Fewest images.
    """

    points: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()
    labels: bool = False
    count: int = 1

    @property
    def images(self) -> bool:
        """Whether any image must be looked at."""
        return bool(self.features or self.labels)

    @property
    def features(self) -> frozenset[str]:
        """Names of all features."""
        return self.points | self.statistics

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.points | other.points,
            self.statistics | other.statistics,
            self.labels or other.labels,
            max(self.count, other.count),
        )


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images, on the CPU.

    Attributes:
        points: Vectors (N, F) float32 by name, in the order of the images.
        statistics: Mean and covariance by name.
        labels: int64 (N,); -1 where there is no class.
    """

    points: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, FeatureStatistics] = field(default_factory=dict)
    labels: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["FeatureSet"]) -> "FeatureSet":
        """What several processes saw of one set, its parts in order."""
        statistics = {}
        for name in parts[0].statistics:
            total = RunningStatistics()
            for part in parts:
                total.merge(part.statistics[name])
            statistics[name] = total.result()
        points = {name: torch.cat([part.points[name] for part in parts]) for name in parts[0].points}
        return cls(points, statistics, torch.cat([part.labels for part in parts]))


def extract(
    extractor: FeatureExtractor,
    images: ImageSet,
    needs: Needs,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    rows: range | None = None,
) -> FeatureSet:
    """Features of images; one batch of images is in memory at a time.

    Args:
        extractor: Network that measures.
        images: What it looks at.
        needs: What is kept.
        batch_size: Images per pass; changes nothing but memory. Default: the extractor's.
        device: Where the extractor runs.
        rows: Places of the images, without gaps: the share of one process, see `FeatureSet.joined`. Default: all.

    Raises:
        ValueError: A file is broken, or the features are not finite, or they are the same for all images.
    """
    rows = range(len(images)) if rows is None else rows
    points = {name: torch.empty(len(rows), extractor.widths[name]) for name in needs.points}
    running = {name: RunningStatistics() for name in needs.statistics}
    labels, done = torch.empty(len(rows), dtype=torch.int64), 0
    for block in images.blocks(batch_size or extractor.batch_size, rows):
        place = slice(done, done + len(block.labels))
        features = extractor(torch.tensor(block.images, device=device).permute(0, 3, 1, 2))
        if done == 0 and (block.images != block.images[0]).any() and _constant(features["pooled"]):
            raise ValueError(
                f"{extractor.name} gives the same features for different images of {images.name}: its weights are "
                "damaged, or not trained"
            )
        for name, kept_NF in points.items():
            kept_NF[place] = features[name].cpu()
        for name, statistics in running.items():
            statistics.add(features[name])
        labels[place] = torch.tensor(block.labels)
        done = place.stop
    return FeatureSet(points, {name: statistics.result() for name, statistics in running.items()}, labels)


def extract_together(
    extractor: FeatureExtractor,
    images: ImageSet,
    needs: Needs,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    ranks: PatientRanks = ALONE,
) -> FeatureSet:
    """As `extract`, but all ranks share the work; rank 0 gets the features, the others none.

    Images go through the network in the batches of one process, whose rounding so stays the same.
    """
    batch_size = batch_size or extractor.batch_size
    batches = -(-len(images) // batch_size)
    first, last = (number * batches // ranks.count for number in (ranks.rank, ranks.rank + 1))
    rows = range(first * batch_size, min(last * batch_size, len(images)))
    part = extract(extractor, images, needs, batch_size, device, rows) if rows else None
    parts = [part for part in ranks.gather(part) or [FeatureSet()] if part is not None]
    return parts[0] if len(parts) == 1 else FeatureSet.joined(parts)


def _constant(features_BF: Tensor) -> bool:
    return bool((features_BF == features_BF[0]).all())
