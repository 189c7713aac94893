"""Variety within each class: the sameness that strong guidance buys a good FID with."""

import torch
from torch import Tensor
from torchmetrics import Metric


class ClassVariety(Metric):
    """Spread of generated features over the spread of real ones, for every class.

    The spread of a class is the standard deviation of each feature, averaged over the features.

    Args:
        num_classes: Number of classes.
        num_features: Width of the features.
    """

    full_state_update = False

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for kind in ("real", "fake"):
            self.add_state(f"{kind}_count", torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")
            for power in ("sum", "square"):
                zeros = torch.zeros(num_classes, num_features, dtype=torch.float64)
                self.add_state(f"{kind}_{power}", zeros, dist_reduce_fx="sum")

    def update(self, features_BF: Tensor, label: Tensor, real: bool) -> None:
        """Add features of real or generated images with their classes (B,)."""
        if len(label) and (label.min() < 0 or label.max() >= self.num_classes):
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {label.min()}..{label.max()}")
        kind, features = "real" if real else "fake", features_BF.double()
        getattr(self, f"{kind}_count").index_add_(0, label, torch.ones_like(label, dtype=torch.float64))
        getattr(self, f"{kind}_sum").index_add_(0, label, features)
        getattr(self, f"{kind}_square").index_add_(0, label, features.square())

    def compute(self) -> Tensor:
        """Ratio per class (K,); NaN where a class has fewer than two images on either side."""
        return self._spread("fake") / self._spread("real")

    def _spread(self, kind: str) -> Tensor:
        count = getattr(self, f"{kind}_count")[:, None]
        total, square = getattr(self, f"{kind}_sum"), getattr(self, f"{kind}_square")
        variance = (square - total.square() / count) / (count - 1)
        return torch.where(count[:, 0] > 1, variance.clamp(min=0).sqrt().mean(dim=1), torch.nan)
