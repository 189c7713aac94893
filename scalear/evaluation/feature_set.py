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
        if len(parts) == 1:
            return parts[0]
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
    ranks: PatientRanks = ALONE,
) -> FeatureSet:
    """Features of all images; one batch of images is in memory at a time.

    Each rank looks at a part of them, in the batches of one process; rank 0 gets all features, others their own.

    Args:
        extractor: Network that measures.
        images: What it looks at.
        needs: What is kept.
        batch_size: Images per pass; changes nothing but memory. Default: the extractor's.
        device: Where the extractor runs.
        ranks: Who shares the work; all call this at once.

    Raises:
        ValueError: A file is broken, or the features are not finite, or those of the first batch all the same.
    """
    batch_size = batch_size or extractor.batch_size
    batches = -(-len(images) // batch_size)
    first, last = (number * batches // ranks.count for number in (ranks.rank, ranks.rank + 1))
    start, stop = first * batch_size, min(last * batch_size, len(images))
    points = {name: torch.empty(stop - start, extractor.widths[name]) for name in needs.points}
    running = {name: RunningStatistics() for name in needs.statistics}
    labels, done = torch.empty(stop - start, dtype=torch.int64), 0
    for block in images.blocks(batch_size, start, stop):
        rows = slice(done, done + len(block.labels))
        features = extractor(torch.tensor(block.images, device=device).permute(0, 3, 1, 2))
        pooled_BF = features["pooled"]
        if done == 0 and len(pooled_BF) > 1 and (pooled_BF == pooled_BF[0]).all():
            raise ValueError(
                f"the first {len(pooled_BF)} images of {images.name} have the same features by {extractor.name}: it is "
                "one image again and again, or the network's weights are damaged"
            )
        for name, kept_NF in points.items():
            kept_NF[rows] = features[name].cpu()
        for name, total in running.items():
            total.add(features[name])
        labels[rows] = torch.tensor(block.labels)
        done = rows.stop
    statistics = {name: total.result() for name, total in running.items() if total.count}
    seen = FeatureSet(points, statistics, labels)
    parts = ranks.gather(seen)
    return seen if parts is None else FeatureSet.joined([part for part in parts if len(part.labels)])
