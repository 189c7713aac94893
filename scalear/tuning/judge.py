"""What settings are worth: images of the same labels from the same noise, against one half of the real images.

Legend: N images, B batch, C channels, H W pixels.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scalear.draws import SeededDraws
from scalear.evaluation.evaluate import choose_metrics, needs_of, score
from scalear.evaluation.feature_set import FeatureSet
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.halves import HalfSet
from scalear.evaluation.image_set import ArraySet, ImageSet
from scalear.evaluation.images import to_uint8
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.side import Side
from scalear.hardware.machine import stopwatch
from scalear.hardware.precision import Precision
from scalear.image_model import ImageModel
from scalear.scales import ScaleSchedule
from scalear.tuning.space import Settings

SECONDS = "seconds_per_image"
"""Name of a number beside those of metrics."""
_BESIDE = {"fid", "recall"}  # measured whatever the search is for


@dataclass(frozen=True)
class SettingsJudge:
    """Samples with settings and measures, always in the same way.

    Attributes:
        model: What samples.
        schedule: The scales of the images.
        real: Real images, of which one half is looked at.
        extractor: Network that measures.
        metrics: What is measured.
        label_N: Labels of the images, the same of all settings; without classes, the null class.
        batch_size: Images at a time.
        precision: Of sampling.
        seed: Image i is made of the noise of (seed, i).
        half: Of the real images.
    """

    model: ImageModel
    schedule: ScaleSchedule
    real: ImageSet
    extractor: FeatureExtractor
    metrics: Sequence[SampleMetric]
    label_N: Tensor
    batch_size: int
    precision: Precision
    seed: int = 0
    half: Literal[0, 1] = 0

    def metrics_for(self, number: str) -> list[SampleMetric]:
        """Of `metrics` the one that gives this number, and those of FID and recall where they can be had.

        Raises:
            ValueError: The number cannot be had of so many samples against this half, or no way of it is the good one.
        """
        sides = self.extractor, self.reference, Side.of(self._samples())
        asked = choose_metrics(self.metrics, *sides, [number])[0]
        if asked.better is None or number.endswith("_std"):
            why = "tells spread" if asked.better else f"does not say which way is `better` ({type(asked).__name__})"
            raise ValueError(f"--metric {number} cannot be searched for: it {why}")
        others = [metric for metric in choose_metrics(self.metrics, *sides) if _BESIDE.intersection(metric.numbers)]
        return [asked, *(metric for metric in others if metric is not asked)]

    def cautions(self) -> list[str]:
        """What must be known of the numbers, a line each."""
        sides = self.extractor, self.reference, Side.of(self._samples())
        return [caution for metric in self.metrics for caution in metric.cautions(*sides)]

    @property
    def num_samples(self) -> int:
        """N, images of each settings."""
        return len(self.label_N)

    @property
    def reference(self) -> Side:
        """The half of the real images."""
        return Side.of(HalfSet(self.real, self.half))

    @torch.inference_mode()
    def __call__(self, settings: Settings) -> dict[str, float]:
        """Numbers by name, and `SECONDS` from noise to pixels: the median of batches after the first, which warms up.

        Raises:
            ValueError: The model or a metric gives what is not finite.
        """
        samples, seconds, device = self._samples(), [], self.model.device
        for first in range(0, self.num_samples, self.batch_size):
            places = range(first, min(first + self.batch_size, self.num_samples))
            seconds.append(stopwatch(partial(self._sample, settings, places, samples), device) / len(places))
        fake = Side.of(samples).features(self.extractor, needs_of(self.metrics, "fake"), device=device)
        return score(self.metrics, self._real_features, fake) | {SECONDS: statistics.median(seconds[1:])}

    def _sample(self, settings: Settings, places: range, samples: ArraySet) -> None:
        """Fill in the images of these places."""
        label_B = self.label_N[places.start : places.stop].to(self.model.device)
        draws = SeededDraws.of_images(self.seed, places, self.model.device)
        how = {"guidance": settings.guidance, "sampling": settings.sampling}
        with self.model.autocast(self.precision):
            image_BCHW = self.model.sample(label_B, draws, self.schedule, **how)
        samples.images[places.start : places.stop] = to_uint8(image_BCHW).permute(0, 2, 3, 1).cpu().numpy()

    @cached_property
    def _real_features(self) -> FeatureSet:
        return self.reference.features(self.extractor, needs_of(self.metrics, "real"), device=self.model.device)

    def _samples(self) -> ArraySet:
        """The labels of all images, which are black."""
        shape = (*self.model.image_size(self.schedule), self.model.tokenizer.image_channels)
        labels = self.label_N.numpy() if self.model.num_classes else np.full(self.num_samples, -1)
        return ArraySet(np.zeros((self.num_samples, *shape), np.uint8), labels, "--num_samples")
