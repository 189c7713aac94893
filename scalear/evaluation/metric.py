"""What a metric of samples promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import isfinite
from typing import Any, ClassVar, Literal

from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.side import Side


class NonFiniteScoreError(ValueError):
    """A number is NaN or infinite."""


def require_finite(numbers: Mapping[str, Any]) -> None:
    """Refuse numbers by name of which one is NaN or infinite: it would be read as a score.

    Raises:
        NonFiniteScoreError: Names those that are.
    """
    bad = [f"{name} is {value}" for name, value in numbers.items() if isinstance(value, float) and not isfinite(value)]
    if bad:
        raise NonFiniteScoreError(f"{', '.join(bad)}, and is not written: look at the images and the weights")


class SampleMetric(ABC):
    """Numbers that compare generated images with real ones.

    Subclasses are small: settings in the constructor, what must be known of either side, and the numbers.
    """

    numbers: tuple[str, ...]
    """Names of what it gives."""
    real: Needs = Needs()
    """What it must know of the real images; none by default."""
    fake: Needs = Needs()
    """What it must know of the samples."""
    needs_labels_known: ClassVar[bool] = False
    """Whether only an extractor that `knows_labels` can serve it."""
    drawn_again: ClassVar[bool] = True
    """Whether it means the same of samples drawn with replacement, some of them twice: see `bootstrap`."""
    better: ClassVar[Literal["lower", "higher"] | None] = None
    """Which way its numbers are good, those apart that end in `_std`; None: nobody can search for the best."""

    @abstractmethod
    def __call__(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """The numbers by name; one that these images cannot give may be left out."""

    def cautions(self, extractor: FeatureExtractor, real: Side, fake: Side) -> list[str]:
        """What must be known of the numbers at these counts of images, a line each."""
        return []
