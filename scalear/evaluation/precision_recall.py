"""Improved precision and recall of generated images (Kynkaanniemi et al. 2019), in blocks."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PrecisionRecall(Metric):
    """How many fakes lie where reals are (precision), and how many reals lie where fakes are (recall).

    Every point of a set owns the ball that reaches to its k-th nearest neighbour in that set; a set's manifold is the
    union of its balls. Compare numbers only at equal counts: more points make smaller balls.

    Args:
        k: Neighbour that ends the ball, from 1.
        block_size: Rows of the distance matrix that are held at once.
    """

    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, k: int = 3, block_size: int = 1024) -> None:
        super().__init__()
        if k < 1 or block_size < 1:
            raise ValueError(f"k and block_size must be at least 1, got {k} and {block_size}")
        self.k = k
        self.block_size = block_size
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, features_BF: Tensor, real: bool) -> None:
        """Add features of real or generated images."""
        (self.real if real else self.fake).append(features_BF.float())

    def compute(self) -> dict[str, Tensor]:
        """`precision` and `recall`, both in [0, 1]."""
        if not self.real or not self.fake:
            raise ValueError("precision and recall need features of real and of generated images")
        real, fake = dim_zero_cat(self.real), dim_zero_cat(self.fake)
        # Distances come from a matrix product; near the origin it cancels least.
        centre = real.mean(dim=0)
        real, fake = real - centre, fake - centre
        return {"precision": self._covered(fake, real), "recall": self._covered(real, fake)}

    def _covered(self, points: Tensor, manifold: Tensor) -> Tensor:
        """Share of `points` inside some ball of `manifold`."""
        radius = self._radius(manifold)
        inside = [(torch.cdist(block, manifold) <= radius).any(dim=1) for block in points.split(self.block_size)]
        return torch.cat(inside).float().mean()

    def _radius(self, points: Tensor) -> Tensor:
        """Distance of each point to its k-th nearest other point."""
        if len(points) <= self.k:
            raise ValueError(f"the {self.k} nearest neighbours need more than {self.k} images, got {len(points)}")
        radius = []
        for start in range(0, len(points), self.block_size):
            distance = torch.cdist(points[start : start + self.block_size], points)
            rows = torch.arange(len(distance), device=points.device)
            distance[rows, rows + start] = torch.inf  # not its own neighbour
            radius.append(distance.kthvalue(self.k, dim=1).values)
        return torch.cat(radius)
