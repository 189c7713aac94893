"""Mean and covariance of features, and the Frechet distance of the Gaussians that they describe.

Legend: N images, B images of a block, F features. All in float64.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from scalear.hardware.float64 import in_float64


@dataclass(frozen=True)
class FeatureStatistics:
    """A Gaussian fitted to features.

    Attributes:
        mean_F: Mean.
        covariance_FF: Unbiased covariance; zero of a single image.
        count: Images that they were taken over; None if that is not known.
    """

    mean_F: Tensor
    covariance_FF: Tensor
    count: int | None = None

    @classmethod
    def of(cls, blocks: Iterable[Tensor]) -> "FeatureStatistics":
        """Statistics of features_BF that come in blocks."""
        total = RunningStatistics()
        for features_BF in blocks:
            total.add(features_BF)
        return total.result()

    def scaled(self, factor_F: Tensor) -> "FeatureStatistics":
        """Statistics of the same features, each times a factor."""
        return FeatureStatistics(self.mean_F * factor_F, self.covariance_FF * factor_F * factor_F[:, None], self.count)


class RunningStatistics:
    """Statistics of features that come in blocks, in one pass (Chan, Golub & LeVeque 1983).

    Every block is centred by itself before it is squared: no digits are lost where means are large.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, features_BF: Tensor) -> None:
        """Add features of further images; they are summed on their device, if that has float64."""
        features_BF = in_float64(features_BF)
        mean_F = features_BF.mean(dim=0)
        centred_BF = features_BF - mean_F
        self._shift(len(features_BF), mean_F)
        self._scatter_FF.addmm_(centred_BF.T, centred_BF)

    def merge(self, other: FeatureStatistics) -> None:
        """Add what another process has seen; its count must be known."""
        self._shift(other.count, other.mean_F)
        self._scatter_FF += other.covariance_FF * (other.count - 1)

    def result(self) -> FeatureStatistics:
        """Of all that was added, on the CPU; at least one image."""
        covariance_FF = self._scatter_FF / max(1, self.count - 1)
        return FeatureStatistics(self._mean_F.cpu(), covariance_FF.cpu(), self.count)

    def _shift(self, count: int, mean_F: Tensor) -> None:
        """Let the mean follow `count` further images, and count what the distance to theirs adds to the scatter."""
        if self.count == 0:
            self._mean_F = torch.zeros_like(mean_F)
            self._scatter_FF = mean_F.new_zeros(len(mean_F), len(mean_F))
        total = self.count + count
        apart_F = mean_F - self._mean_F
        self._scatter_FF.addr_(apart_F, apart_F, alpha=self.count * count / total)
        self._mean_F += apart_F * (count / total)
        self.count = total


def frechet_distance(a: FeatureStatistics | Tensor, b: FeatureStatistics | Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, eq. 6; Dowson & Landau 1982).

    With S = R R^T, the trace of that root is the sum of the singular values of R_a^T R_b, which are real for every pair
    of covariances. Singular ones (of fewer images than features) cost a matrix root half of its digits; not these.

    Args:
        a: Features (N, F), or their mean and covariance.
        b: The same of the other side.

    Raises:
        ValueError: A mean or covariance is NaN or infinite.
    """
    a, b = (FeatureStatistics.of([side]) if isinstance(side, Tensor) else side for side in (a, b))
    if not all(part.isfinite().all() for side in (a, b) for part in (side.mean_F, side.covariance_FF)):
        raise ValueError("features that are not finite have no Frechet distance (FID): look at images and extractor")
    cross = torch.linalg.svdvals(_root(a.covariance_FF).T @ _root(b.covariance_FF)).sum()
    apart = (a.mean_F - b.mean_F).square().sum()
    distance = apart + a.covariance_FF.trace() + b.covariance_FF.trace() - 2 * cross
    return max(0.0, distance.item())  # rounding can leave equal sets a hair below zero


def _root(covariance_FF: Tensor) -> Tensor:
    """A matrix R with R R^T = S."""
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    return vectors_FF * values_F.clamp_min(0).sqrt()
