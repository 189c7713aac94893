"""Kernel Inception Distance: an unbiased distance between sets of features."""

import numpy as np
import torch
from torch import Tensor

from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.side import Side


class KernelDistance(SampleMetric):
    """Squared maximum mean discrepancy with the kernel (x.y / F + 1)^3 (Binkowski et al. 2018, section 4).

    Its expectation does not depend on the number of images, so it may also be negative. It is averaged over random
    subsets: those that torch-fidelity draws. A side of no more images than a subset has is taken as a whole.

    Args:
        subsets: How many pairs of subsets.
        subset_size: Images of a subset.
        seed: Of the subsets.
    """

    numbers = ("kid", "kid_std")
    real = fake = Needs(points=frozenset({"pooled"}), count=2)
    better = "lower"
    drawn_again = False  # it is unbiased among samples that are all others; its subsets tell its spread

    def __init__(self, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> None:
        if subsets < 1 or subset_size < 2:
            raise ValueError(f"need subsets >= 1 and subset_size >= 2, got {subsets} and {subset_size}")
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """`kid`, the mean over subsets, and `kid_std`, their standard deviation."""
        sides = fake.points["pooled"], real.points["pooled"]
        whole = all(len(points_NF) <= self.subset_size for points_NF in sides)
        random = np.random.RandomState(self.seed)
        distances = []
        for _ in range(1 if whole else self.subsets):
            a_NF, b_NF = (self._subset(points_NF, random) for points_NF in sides)
            distances.append(squared_mmd(a_NF, b_NF))
        return {"kid": float(np.mean(distances)), "kid_std": float(np.std(distances))}

    def cautions(self, extractor: FeatureExtractor, real: Side, fake: Side) -> list[str]:
        few = min(len(real.images), len(fake.images))
        if few >= self.subset_size:
            return []
        return [f"kid takes subsets of {self.subset_size:,}, and one side has {few:,} images: that one is taken whole"]

    def _subset(self, points_NF: Tensor, random: np.random.RandomState) -> Tensor:
        size = min(self.subset_size, len(points_NF))
        return points_NF[torch.from_numpy(random.choice(len(points_NF), size, replace=False))]


def squared_mmd(a_NF: Tensor, b_NF: Tensor) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy under the cubic kernel (Gretton et al. 2012, eq. 3)."""
    a_NF, b_NF = a_NF.double(), b_NF.double()
    return (_within(a_NF) + _within(b_NF) - 2 * _kernel(a_NF, b_NF).mean()).item()


def _within(x_NF: Tensor) -> Tensor:
    """Mean kernel of two different members of a set."""
    diagonal_N = (x_NF.square().mean(dim=1) + 1) ** 3
    return (_kernel(x_NF, x_NF).sum() - diagonal_N.sum()) / (len(x_NF) * (len(x_NF) - 1))


def _kernel(a_NF: Tensor, b_MF: Tensor) -> Tensor:
    return (a_NF @ b_MF.T / a_NF.shape[1] + 1) ** 3
