"""A side of a comparison, samples or what they are compared with: images, statistics of images, or both."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from scalear.distributed.patient_ranks import ALONE, PatientRanks
from scalear.evaluation.feature_set import FeatureSet, Needs, extract_together
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ImageSet, SampleSet, image_set
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
    def open(cls, place: str, split: str = "val") -> "Side":
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

    def remembered(
        self,
        extractor: FeatureExtractor,
        names: frozenset[str],
        device: torch.device | str = "cpu",
        ranks: PatientRanks = ALONE,
    ) -> "Side":
        """Itself with statistics of these features, for which its images need not be looked at again; on all ranks."""
        seen = self.features(extractor, Needs(statistics=names), device=device, ranks=ranks)
        return dataclasses.replace(self, statistics=ranks.first(lambda: seen.statistics))


def floor_of(reference: Side, count: int | None) -> Side | None:
    """Other real images than those that the reference's statistics are of, to measure like samples.

    Of a file with statistics and images they are the images, of shards those of another split.

    Args:
        reference: What samples are compared with.
        count: How many; None if that is not known.

    Returns:
        So many images; None where there are none or too few.
    """
    if count is None or reference.images is None:
        return None
    others = reference.images.first(count) if reference.statistics else reference.images.others(count)
    return None if others is None else Side.of(others)
