"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from scalear.evaluation.features import FeatureExtractor
from scalear.hardware.float64 import in_float64, widest_float


class FrechetFeatureDistance(FrechetInceptionDistance):
    """FID of features that are already there; statistics in float64, summed over ranks.

    They follow their owner to its device, except to one that has no float64: then they stay on the CPU.

    Args:
        num_features: Width of the features.
        reset_real_features: False keeps the statistics of the real images when the metric is reset.
    """

    def __init__(self, num_features: int, reset_real_features: bool = True) -> None:
        features = nn.Identity()
        features.num_features = num_features
        super().__init__(feature=features, reset_real_features=reset_real_features)

    def update(self, features_BF: Tensor, real: bool) -> None:
        """Add features of real or generated images."""
        if self.real_features_sum.dtype != torch.float64:
            raise ValueError(
                f"FID needs statistics in float64, its owner was converted to {self.real_features_sum.dtype}: "
                "set trainer.precision to a -mixed one"
            )
        if not features_BF.isfinite().all():
            raise ValueError(f"features of {'real' if real else 'generated'} images are not finite: they have no FID")
        super().update(in_float64(features_BF), real)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        device = fn(torch.zeros(1, device=self.device)).device
        return super()._apply(fn, exclude_state) if widest_float(device) == torch.float64 else self


class FeatureFID(FrechetFeatureDistance):
    """FID of uint8 images under a named extractor.

    Args:
        extractor: Network that measures.
        reset_real_features: False keeps the statistics of the real images when the metric is reset.
    """

    def __init__(self, extractor: FeatureExtractor, reset_real_features: bool = True) -> None:
        super().__init__(extractor.num_features, reset_real_features)
        self.extractor = extractor

    def update(self, image_BCHW: Tensor, real: bool) -> None:
        """Add real or generated images."""
        super().update(self.extractor(image_BCHW), real)


def frechet_distance(real_BF: Tensor, fake_BF: Tensor) -> float:
    """FID between two sets of features."""
    metric = FrechetFeatureDistance(real_BF.shape[1])
    metric.sync_on_compute = False  # these features are complete, whatever other ranks do
    metric.update(real_BF, real=True)
    metric.update(fake_BF, real=False)
    return max(0.0, metric.compute().item())  # rounding can leave equal sets a hair below zero
