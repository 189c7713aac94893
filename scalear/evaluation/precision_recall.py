"""Improved precision and recall of generated images (Kynkaanniemi et al. 2019), in blocks.

Legend: N images, F features.
"""

import torch
from torch import Tensor


def precision_recall(real_NF: Tensor, fake_NF: Tensor, k: int = 3, block_size: int = 1024) -> tuple[float, float]:
    """How many fakes lie where reals are (precision), and how many reals lie where fakes are (recall).

    Every point of a set owns the ball that reaches to its k-th nearest neighbour in that set; a set's manifold is the
    union of its balls. Compare numbers only at equal counts: more points make smaller balls.

    Args:
        real_NF: Features of real images.
        fake_NF: Features of generated ones, as many or not.
        k: Neighbour that ends the ball, from 1.
        block_size: Rows of the distance matrix that are held at once.

    Returns:
        Precision and recall, both in [0, 1].

    Raises:
        ValueError: A set has no more than k images, or k or block_size is below 1.
    """
    if k < 1 or block_size < 1:
        raise ValueError(f"k and block_size must be at least 1, got {k} and {block_size}")
    real, fake = real_NF.float(), fake_NF.float()
    # Distances come from a matrix product; near the origin it cancels least.
    centre = real.mean(dim=0)
    real, fake = real - centre, fake - centre
    return _covered(fake, real, k, block_size), _covered(real, fake, k, block_size)


def _covered(points: Tensor, manifold: Tensor, k: int, block_size: int) -> float:
    """Share of `points` inside some ball of `manifold`."""
    radius = _radius(manifold, k, block_size)
    inside = [(torch.cdist(block, manifold) <= radius).any(dim=1) for block in points.split(block_size)]
    return torch.cat(inside).float().mean().item()


def _radius(points: Tensor, k: int, block_size: int) -> Tensor:
    """Distance of each point to its k-th nearest other point."""
    if len(points) <= k:
        raise ValueError(f"the {k} nearest neighbours need more than {k} images, got {len(points)}")
    radius = []
    for start in range(0, len(points), block_size):
        distance = torch.cdist(points[start : start + block_size], points)
        rows = torch.arange(len(distance), device=points.device)
        distance[rows, rows + start] = torch.inf  # not its own neighbour
        radius.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(radius)
