"""Statistics of features in a file, as the field has them and with what they are of.

`.npz` with `mu` (F,) and `sigma` (F, F) of pooled features; ADM's also hold `mu_s` and `sigma_s` of spatial ones. Those
that are written here hold a record besides, as JSON, which other readers do not mind.
"""

import dataclasses
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import scalear
from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ImageSet
from scalear.evaluation.statistics import FeatureStatistics
from scalear.files import atomic_file

SUFFIXES = {"pooled": "", "spatial": "_s", "texture": "_texture"}
"""What ends the names of the arrays of features."""


@dataclass(frozen=True)
class StatisticsRecord:
    """What a file of this package says about itself.

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


def statistics_needs(extractor: FeatureExtractor) -> Needs:
    """What a file holds of the features that an extractor gives."""
    return Needs(statistics=frozenset(SUFFIXES.keys() & extractor.widths.keys()), count=2)


def write_statistics(path: str | Path, images: ImageSet, extractor: FeatureExtractor, seen: FeatureSet) -> None:
    """Write the statistics of a set of images.

    Args:
        path: File to write, ending in `.npz`.
        images: The set.
        extractor: What has seen it.
        seen: What it saw, as `statistics_needs` asks for.
    """
    record = StatisticsRecord(extractor.name, images.name, images.image_shape, len(images), images.fingerprint())
    arrays = {"record": np.array(json.dumps(dataclasses.asdict(record)))}
    for name, statistics in seen.statistics.items():
        arrays[f"mu{SUFFIXES[name]}"] = statistics.mean_F.numpy()
        arrays[f"sigma{SUFFIXES[name]}"] = statistics.covariance_FF.numpy()
    with atomic_file(path) as file:
        np.savez(file, **arrays)


@dataclass(frozen=True)
class StoredStatistics:
    """What a file holds.

    Attributes:
        statistics: Of features by name; none if it has none.
        record: What it says about itself; None if it says nothing.
        beside_images: Whether it also holds images.
    """

    statistics: dict[str, FeatureStatistics]
    record: StatisticsRecord | None
    beside_images: bool


def read_statistics(path: str | Path) -> StoredStatistics:
    """Read a file of statistics, or find out that it has none; images are not read.

    Raises:
        ValueError: It is no `.npz` file, or damaged.
    """
    names = {"record"} | {f"{kind}{suffix}" for kind in ("mu", "sigma") for suffix in SUFFIXES.values()}
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in names.intersection(archive.files)}
            beside_images = "arr_0" in archive
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no .npz file that can be read: {error}") from error
    record = _record(path, arrays["record"]) if "record" in arrays else None
    statistics = {
        name: _statistics(path, arrays[f"mu{suffix}"], arrays.get(f"sigma{suffix}"), record and record.count)
        for name, suffix in SUFFIXES.items()
        if f"mu{suffix}" in arrays
    }
    return StoredStatistics(statistics, record, beside_images)


def _statistics(
    path: str | Path, mean_F: np.ndarray, covariance_FF: np.ndarray | None, count: int | None
) -> FeatureStatistics:
    if covariance_FF is None or mean_F.ndim != 1 or covariance_FF.shape != 2 * mean_F.shape:
        raise ValueError(
            f"{path} must hold a mean (F,) and a covariance (F, F), got {mean_F.shape} and "
            f"{None if covariance_FF is None else covariance_FF.shape}"
        )
    if not (np.isfinite(mean_F).all() and np.isfinite(covariance_FF).all()):
        raise ValueError(f"the statistics in {path} are not finite: write or copy them again")
    if not covariance_FF.any():
        raise ValueError(f"the statistics in {path} are of features that are all the same")
    return FeatureStatistics(*(torch.from_numpy(array.astype(np.float64)) for array in (mean_F, covariance_FF)), count)


def _record(path: str | Path, text: np.ndarray) -> StatisticsRecord:
    try:
        content = json.loads(str(text))
        return StatisticsRecord(**content | {"image_shape": tuple(content["image_shape"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the record in {path} is not one of this version of scalear: {error}") from error
