"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017)."""

from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from scalear.evaluation.features import FeatureExtractor


class FeatureFID(FrechetInceptionDistance):
    """FID of uint8 images under a named extractor; statistics in float64, summed over ranks.

    Args:
        extractor: Network that measures; its weights are loaded here.
        reset_real_features: False keeps the statistics of the real images when the metric is reset.
    """

    def __init__(self, extractor: FeatureExtractor, reset_real_features: bool = True) -> None:
        extractor.load_weights()
        super().__init__(feature=extractor, reset_real_features=reset_real_features)

    @property
    def name(self) -> str:
        """The extractor's name."""
        return self.inception.name


def frechet_distance(real_BF: Tensor, fake_BF: Tensor) -> float:
    """FID of features that are already there."""
    metric = FrechetInceptionDistance(feature=_Features(real_BF.shape[1]))
    metric.update(real_BF.double(), real=True)
    metric.update(fake_BF.double(), real=False)
    return metric.compute().item()


class _Features(nn.Identity):
    """The extractor of features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
