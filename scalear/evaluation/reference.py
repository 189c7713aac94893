"""Either side of a comparison: images, statistics that a file holds of them, or both.

Files are `.npz` with `mu` (F,) and `sigma` (F, F), as the field has them; ADM's also hold `mu_s` and `sigma_s` of the
spatial features, and 10,000 images in `arr_0`, which are not those that the statistics were taken over.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import scalear
from scalear.data.index import INDEX_NAME, DatasetIndex
from scalear.distributed.patient_ranks import ALONE, PatientRanks
from scalear.evaluation.feature_set import FeatureSet, Needs, extract
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ImageSet, SampleSet, ShardSet, image_set
from scalear.evaluation.statistics import FeatureStatistics
from scalear.files import atomic_file

_SUFFIXES = {"pooled": "", "spatial": "_s", "texture": "_texture"}
"""What ends the names of a feature's arrays in a file."""


@dataclass(frozen=True)
class StatisticsRecord:
    """What a statistics file of this package says about itself.

    Attributes:
        extractor: Name of the network, which includes its weights' hash.
        images: Name of the set of images.
        image_shape: (H, W, C).
        count: How many.
        fingerprint: SHA-256 of their files.
        version: Of scalear.
    """

    extractor: str
    images: str
    image_shape: tuple[int, int, int]
    count: int
    fingerprint: str
    version: str = scalear.__version__


@dataclass(frozen=True)
class Reference:
    """Images, real ones or samples, known by their features.

    Attributes:
        name: What they are, for tables.
        images: For what needs images, or has no statistics; None if there are none.
        statistics: Of features by name; they go before what the images give.
        record: What the file of the statistics says; None if it says nothing.
    """

    name: str
    images: ImageSet | None
    statistics: Mapping[str, FeatureStatistics] = dataclasses.field(default_factory=dict)
    record: StatisticsRecord | None = None

    @classmethod
    def of(cls, images: "ImageSet | Reference") -> "Reference":
        """Images alone; what is a reference already stays one."""
        return images if isinstance(images, Reference) else cls(images.name, images)

    @classmethod
    def open(cls, place: str, split: str | None = None) -> "Reference":
        """Read what a command is pointed at: a statistics file, or what `image_set` takes.

        Raises:
            ValueError: It is nothing of the kind, or damaged.
        """
        path = Path(place)
        if path.suffix != ".npz" or not path.is_file():
            return cls.of(image_set(place, split))
        arrays = _arrays(path)
        statistics = {
            name: _statistics(path, arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"])
            for name, suffix in _SUFFIXES.items()
            if f"mu{suffix}" in arrays
        }
        record = _record(path, arrays)
        if record is not None:
            statistics = {name: dataclasses.replace(found, count=record.count) for name, found in statistics.items()}
        images = SampleSet(path) if "arr_0" in arrays or not statistics else None
        return cls(path.name, images, statistics, record)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(H, W, C); None if a file does not say."""
        if self.images is not None:
            return self.images.image_shape
        return None if self.record is None else self.record.image_shape

    def count(self, feature: str | None = None) -> int | None:
        """How many images the statistics of a feature are of; without one, how many images there are."""
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

    def check(self, extractor: FeatureExtractor, image_shape: tuple[int, ...] | None = None) -> None:
        """Refuse to compare what does not compare with images of (H, W) or (H, W, C).

        Raises:
            ValueError: The statistics are another network's, or images are of another size.
        """
        if self.record is not None and self.record.extractor != extractor.name:
            raise ValueError(
                f"the statistics in {self.name} are of {self.record.extractor}, and the other side would be measured "
                f"with {extractor.name}: take the same extractor, or write them anew with `scalear stats`"
            )
        for name, statistics in self.statistics.items():
            width = extractor.widths.get(name, len(statistics.mean_F))
            if len(statistics.mean_F) != width:
                raise ValueError(
                    f"{self.name} holds statistics of {len(statistics.mean_F)} {name} features, {extractor.name} gives "
                    f"{width}: they are another network's"
                )
        if self.image_shape and image_shape and self.image_shape[:2] != tuple(image_shape[:2]):
            sizes = ["x".join(map(str, shape[:2])) for shape in (image_shape, self.image_shape)]
            raise ValueError(f"samples are {sizes[0]} pixels, the real images ({self.name}) {sizes[1]}")

    def features(
        self,
        extractor: FeatureExtractor,
        needs: Needs,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        ranks: PatientRanks = ALONE,
    ) -> FeatureSet:
        """What is needed of it, as `extract` gives it; images are looked at only where statistics do not do."""
        stored = {name: self.statistics[name] for name in needs.statistics & self.statistics.keys()}
        rest = dataclasses.replace(needs, statistics=needs.statistics - stored.keys())
        if not (rest.points or rest.statistics or rest.labels):
            return FeatureSet(statistics=stored)
        seen = extract(extractor, self.images, rest, batch_size, device, ranks)
        return dataclasses.replace(seen, statistics=seen.statistics | stored)


def floor_of(place: str, split: str | None, count: int | None) -> ImageSet | None:
    """Other real images than those of `Reference.open(place, split)`, to measure like samples.

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
        return ShardSet(place, other, count) if other and index.num_samples(other) >= count else None
    reference = Reference.open(place)
    has_others = reference.statistics and reference.images is not None and len(reference.images) >= count
    return SampleSet(place, count=count) if has_others else None


def write_statistics(path: str | Path, images: ImageSet, extractor: FeatureExtractor, seen: FeatureSet) -> None:
    """Write the statistics of a set of images, with what they are of, where `Reference.open` reads them.

    Args:
        path: File to write, ending in `.npz`.
        images: The set.
        extractor: What has seen it.
        seen: The features.
    """
    record = StatisticsRecord(extractor.name, images.name, images.image_shape, len(images), images.fingerprint())
    arrays = {"record": np.array(json.dumps(dataclasses.asdict(record)))}
    for name, statistics in seen.statistics.items():
        arrays[f"mu{_SUFFIXES[name]}"] = statistics.mean_F.numpy()
        arrays[f"sigma{_SUFFIXES[name]}"] = statistics.covariance_FF.numpy()
    with atomic_file(path) as file:
        np.savez(file, **arrays)


def _arrays(path: Path) -> dict[str, np.ndarray | None]:
    """Arrays of a file; of images the name alone."""
    try:
        with np.load(path) as archive:
            return {name: None if name.startswith("arr_") else archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of samples or statistics: {error}") from error


def _statistics(path: Path, mean_F: np.ndarray, covariance_FF: np.ndarray) -> FeatureStatistics:
    if mean_F.ndim != 1 or covariance_FF.shape != 2 * mean_F.shape:
        raise ValueError(
            f"{path} holds a mean of shape {mean_F.shape} and a covariance of shape {covariance_FF.shape}, must be "
            "(F,) and (F, F)"
        )
    if not (np.isfinite(mean_F).all() and np.isfinite(covariance_FF).all()):
        raise ValueError(f"the statistics in {path} are not finite")
    if not covariance_FF.any():
        raise ValueError(f"the statistics in {path} are of features that are all the same")
    return FeatureStatistics(*(torch.from_numpy(array.astype(np.float64)) for array in (mean_F, covariance_FF)))


def _record(path: Path, arrays: Mapping[str, np.ndarray | None]) -> StatisticsRecord | None:
    if "record" not in arrays:
        return None
    try:
        content = json.loads(str(arrays["record"]))
        return StatisticsRecord(**content | {"image_shape": tuple(content["image_shape"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the record in {path} is not one of this package: {error}") from error
