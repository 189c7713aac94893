"""Frechet distance between Gaussians fitted to features: FID (Heusel et al. 2017) and its relatives."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.side import Side
from scalear.evaluation.statistics import FeatureStatistics, frechet_distance
from scalear.hardware.float64 import in_float64, widest_float

SMALL = 10_000  # images, below which the bias of FID is large


class FrechetDistance(SampleMetric):
    """Frechet distance in the space of one kind of features.

    Args:
        number: Name of the result: `fid` of `pooled` features, `sfid` of `spatial` ones (Nash et al. 2021).
        feature: What the Gaussians are fitted to.
        standardise: Take every feature in units of its standard deviation over the real images.
    """

    better = "lower"

    def __init__(self, number: str = "fid", feature: str = "pooled", standardise: bool = False) -> None:
        self.numbers = (number,)
        self.feature = feature
        self.standardise = standardise
        self.real = self.fake = Needs(statistics=frozenset({feature}), count=2)

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        a, b = real.statistics[self.feature], fake.statistics[self.feature]
        if self.standardise:
            factor_F = 1 / a.covariance_FF.diagonal().sqrt().clamp_min(1e-6)
            a, b = a.scaled(factor_F), b.scaled(factor_F)
        return {self.numbers[0]: frechet_distance(a, b)}

    def cautions(self, extractor: FeatureExtractor, real: Side, fake: Side) -> list[str]:
        number, width, lines = self.numbers[0], extractor.widths[self.feature], []
        for side, what in ((fake, "samples"), (real, "real images")):
            count = side.count(self.feature)
            if count is not None and count <= width:
                lines.append(f"{number}: {count:,} {what} leave the covariance of {width:,} features singular")
            elif count is not None and count < SMALL:
                lines.append(f"{number} of {count:,} {what} is biased upwards: it compares at this count only")
        return lines


class FrechetFeatureDistance(FrechetInceptionDistance):
    """FID of features that are already there; statistics in float64, summed over ranks.

    They follow their owner to its device, except to one that has no float64: then they stay on the CPU.

    Args:
        num_features: Width of the features.
    """

    def __init__(self, num_features: int) -> None:
        features = nn.Identity()
        features.num_features = num_features
        super().__init__(feature=features)

    def update(self, features_BF: Tensor, real: bool) -> None:
        """Add features of real or generated images."""
        if self.real_features_sum.dtype != torch.float64:
            raise ValueError(
                f"FID needs statistics in float64, its owner was converted to {self.real_features_sum.dtype}: "
                "set trainer.precision to a -mixed one"
            )
        super().update(in_float64(features_BF), real)

    def compute(self) -> Tensor:
        distance = frechet_distance(self._statistics("real"), self._statistics("fake"))
        return self.real_features_sum.new_tensor(distance)

    def _statistics(self, side: str) -> FeatureStatistics:
        count, total_F, square_FF = (
            getattr(self, f"{side}_features_{state}").cpu() for state in ("num_samples", "sum", "cov_sum")
        )
        if count < 2:
            raise ValueError(f"FID needs two images of each side, got {count} {side} ones")
        mean_F = total_F / count
        return FeatureStatistics(mean_F, (square_FF - count * mean_F.outer(mean_F)) / (count - 1), count.item())

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        device = fn(torch.zeros(1, device=self.device)).device
        return super()._apply(fn, exclude_state) if widest_float(device) == torch.float64 else self


class FeatureFID(FrechetFeatureDistance):
    """FID of uint8 images under a named extractor.

    Args:
        extractor: Network that measures.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__(extractor.num_features)
        self.extractor = extractor

    def update(self, image_BCHW: Tensor, real: bool) -> None:
        """Add real or generated images."""
        super().update(self.extractor(image_BCHW)["pooled"], real)
