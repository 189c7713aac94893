"""A side of a comparison, samples or what they are compared with: images, statistics of images, or both."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from scalear.data.index import INDEX_NAME, DatasetIndex
from scalear.distributed.patient_ranks import ALONE, PatientRanks
from scalear.evaluation.feature_set import FeatureSet, Needs, extract_together
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ImageSet, SampleSet, ShardSet, image_set
from scalear.evaluation.statistics import FeatureStatistics
from scalear.evaluation.statistics_file import StatisticsRecord, read_statistics


@dataclass(frozen=True)
class Side:
    """Images that are known by their features.

    Attributes:
        name: What they are, for tables.
        images: For all that takes more than stored statistics; None if there are none.
        statistics: Of features by name. They go before the images, which in ADM's files are not those that they were
            taken over.
        record: What the file of the statistics says; None if it says nothing.
    """

    name: str
    images: ImageSet | None = None
    statistics: Mapping[str, FeatureStatistics] = dataclasses.field(default_factory=dict)
    record: StatisticsRecord | None = None

    @classmethod
    def of(cls, images: ImageSet) -> "Side":
        """Images alone."""
        return cls(images.name, images)

    @classmethod
    def open(cls, place: str, split: str | None = None) -> "Side":
        """What a command is pointed at: a statistics file, or what `image_set` takes.

        Raises:
            ValueError: It is nothing of the kind, or damaged.
        """
        path = Path(place)
        if path.suffix != ".npz" or not path.is_file():
            return cls.of(image_set(place, split))
        stored = read_statistics(path)
        images = SampleSet(path) if stored.beside_images or not stored.statistics else None
        return cls(path.name, images, stored.statistics, stored.record)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(H, W, C); None if a file does not say."""
        if self.images is not None:
            return self.images.image_shape
        return None if self.record is None else self.record.image_shape

    def count(self, feature: str) -> int | None:
        """How many images the statistics of a feature are of; None if a file does not say."""
        if feature in self.statistics:
            return self.statistics[feature].count
        return None if self.images is None else len(self.images)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the files that the images come from, or of the statistics."""
        if self.images is not None:
            return self.images.fingerprint()
        total = hashlib.sha256()
        for statistics in self.statistics.values():
            total.update(statistics.mean_F.numpy())
            total.update(statistics.covariance_FF.numpy())
        return total.hexdigest()

    def check(self, extractor: FeatureExtractor) -> None:
        """Refuse what this network cannot measure, and statistics that it did not make.

        Raises:
            ValueError: Names the network that does not fit.
        """
        if self.image_shape is not None:
            extractor.check_channels(self.image_shape[2])
        if self.record is not None and self.record.extractor != extractor.name:
            raise ValueError(
                f"the statistics in {self.name} are of {self.record.extractor}, not of {extractor.name}: take that "
                "extractor, or write them anew with `scalear stats`"
            )
        for name, statistics in self.statistics.items():
            stored, given = len(statistics.mean_F), extractor.widths.get(name)
            if given not in (None, stored):
                raise ValueError(
                    f"{self.name} holds statistics of {stored} {name} features, {extractor.name} gives {given}: they "
                    "are another network's"
                )

    def unstored(self, needs: Needs) -> Needs:
        """What images must be looked at for."""
        return dataclasses.replace(needs, statistics=needs.statistics - self.statistics.keys())

    def features(
        self,
        extractor: FeatureExtractor,
        needs: Needs,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        ranks: PatientRanks = ALONE,
    ) -> FeatureSet:
        """What is needed of it, by `extract_together` as far as it is not stored."""
        stored = {name: self.statistics[name] for name in needs.statistics & self.statistics.keys()}
        rest = self.unstored(needs)
        seen = FeatureSet()
        if rest.images:
            seen = extract_together(extractor, self.images, rest, batch_size, device, ranks)
        return dataclasses.replace(seen, statistics={**seen.statistics, **stored})


def floor_of(place: str, split: str | None, count: int | None) -> Side | None:
    """Other real images than those of `Side.open(place, split)`, to measure like samples.

    Of shards they come from the largest other split; of a file with statistics and images they are the images.

    Args:
        place: Of the reference.
        split: Of shards.
        count: How many; None if that is not known.

    Returns:
        So many images; None where there are none or too few.
    """
    if count is None:
        return None
    if (Path(place) / INDEX_NAME).is_file():
        index = DatasetIndex.load(place)
        other = max(index.splits.keys() - {split}, key=index.num_samples, default=None)
        has_others = other is not None and index.num_samples(other) >= count
        return Side.of(ShardSet(place, other, count)) if has_others else None
    reference = Side.open(place)
    has_others = reference.statistics and reference.images is not None and len(reference.images) >= count
    return Side.of(SampleSet(place, count=count)) if has_others else None
