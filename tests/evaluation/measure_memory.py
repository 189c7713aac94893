"""Run by test_evaluation.py in a process of its own: the peak of memory while every metric is measured.

Prints how many numbers there are, the peak before any image was seen, and the peak in the end, in bytes.
"""

import numpy as np
import torch
from torch import Tensor, nn

from scalear.benchmark.timing import peak_rss_bytes
from scalear.evaluation.evaluate import choose_metrics, default_metrics, evaluate_samples
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ArraySet
from scalear.evaluation.kid import KernelDistance
from scalear.evaluation.side import Side


class Noise(FeatureExtractor):
    """Features that cost nothing.

    Args:
        num_features: Of every kind.
    """

    kind, knows_labels = "noise", True

    def __init__(self, num_features: int) -> None:
        super().__init__("random:0", num_features)

    @property
    def widths(self) -> dict[str, int]:
        return dict.fromkeys(("pooled", "spatial", "logits", "texture"), self.num_features)

    def _load(self) -> nn.Module:
        return nn.Identity()

    def _features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        return {name: torch.randn(len(image_BCHW), width) for name, width in self.widths.items()}


def main(count: int, num_features: int) -> None:
    images = np.arange(count).astype(np.uint8).reshape(count, 1, 1, 1)
    real, fake = (Side.of(ArraySet(images, np.arange(count) % 10, name)) for name in ("real", "fake"))
    extractor = Noise(num_features)
    metrics = [metric for metric in default_metrics() if not isinstance(metric, KernelDistance)]
    metrics.append(KernelDistance(subsets=2))  # more of them take time alone
    before = peak_rss_bytes()
    scores = evaluate_samples(fake, real, extractor, choose_metrics(metrics, extractor, real, fake))
    print(len(scores), before, peak_rss_bytes())
