"""Precision, recall, density and coverage: whether samples lie where real images are, and the other way round.

Every point of a set owns the ball that reaches to its k-th nearest neighbour in that set; a set's manifold is the union
of its balls. Compare numbers only at equal counts: more points make smaller balls. Legend: N real and M generated
images, B points of a block, F features.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.side import Side


class ManifoldMetrics(SampleMetric):
    """Improved precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    They share distances, which are taken in float64 and in blocks.

    Args:
        k: Neighbour that bounds the balls of precision and recall.
        density_k: Neighbour that bounds those of density and coverage.
        block_size: Points whose distances to all others are held at once.
    """

    numbers = ("precision", "recall", "density", "coverage")
    better = "higher"
    drawn_again = False  # a sample that is there twice is its own neighbour

    def __init__(self, k: int = 3, density_k: int = 5, block_size: int = 512) -> None:
        if min(k, density_k, block_size) < 1:
            raise ValueError(f"k, density_k and block_size must be at least 1, got {k}, {density_k}, {block_size}")
        self.k, self.density_k, self.block_size = k, density_k, block_size
        points = frozenset({"pooled"})
        self.real, self.fake = Needs(points, count=max(k, density_k) + 1), Needs(points, count=k + 1)

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """`precision`, `recall` and `coverage` in [0, 1]; `density` is 1 of real images and has no upper bound."""
        real_NF, fake_MF = real.points["pooled"], fake.points["pooled"]
        narrow_N, wide_N = self._radii(real_NF, (self.k, self.density_k))
        (fake_M,) = self._radii(fake_MF, (self.k,))

        precise, dense = 0, 0
        recalled_N = torch.zeros(len(real_NF), dtype=torch.bool)
        nearest_N = torch.full((len(real_NF),), torch.inf, dtype=torch.float64)
        for start, distance_BN in self._distances(fake_MF, real_NF):
            precise += (distance_BN <= narrow_N).any(dim=1).sum().item()
            dense += (distance_BN < wide_N).sum().item()
            recalled_N |= (distance_BN <= fake_M[start : start + len(distance_BN), None]).any(dim=0)
            nearest_N = torch.minimum(nearest_N, distance_BN.amin(dim=0))
        return {
            "precision": precise / len(fake_MF),
            "recall": recalled_N.double().mean().item(),
            "density": dense / (self.density_k * len(fake_MF)),
            "coverage": (nearest_N < wide_N).double().mean().item(),
        }

    def cautions(self, extractor: FeatureExtractor, real: Side, fake: Side) -> list[str]:
        num_fake, num_real = len(fake.images), len(real.images)
        if num_fake == num_real:
            return []
        return [
            f"precision, recall, density and coverage of {num_fake:,} samples against {num_real:,} real images compare "
            "at the same two counts only"
        ]

    def _radii(self, points_NF: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
        """Squared distances of each point to its k-th nearest other points, (N,) for each k."""
        nearest = []
        for start, distance_BN in self._distances(points_NF, points_NF):
            rows = torch.arange(len(distance_BN))
            distance_BN[rows, rows + start] = torch.inf  # not its own neighbour
            nearest.append(distance_BN.topk(max(ks), dim=1, largest=False).values)
        nearest_NK = torch.cat(nearest)
        return [nearest_NK[:, k - 1] for k in ks]

    def _distances(self, a_MF: Tensor, b_NF: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Squared distances of all pairs, in float64: where each block begins, and its (B, N)."""
        # They come from a matrix product; near the origin it cancels least.
        centre_F = b_NF.mean(dim=0)
        b_NF = b_NF.double().sub_(centre_F)
        b_norm_N = torch.linalg.vector_norm(b_NF, dim=1).square()
        for start in range(0, len(a_MF), self.block_size):
            a_BF = a_MF[start : start + self.block_size].double().sub_(centre_F)
            norms_BN = torch.linalg.vector_norm(a_BF, dim=1, keepdim=True).square() + b_norm_N
            yield start, norms_BN.addmm_(a_BF, b_NF.T, alpha=-2).clamp_min_(0)
