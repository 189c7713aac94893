"""Run by test_evaluation.py in a process of its own: the peak of memory while every metric is measured."""

import sys

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
    """As wide as Inception, and quicker."""

    kind, knows_labels = "noise", True
    widths = {"pooled": 2048, "spatial": 2023, "logits": 1008, "texture": 80}

    def _load(self) -> nn.Module:
        return nn.Identity()

    def _features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        return {name: torch.randn(len(image_BCHW), width) for name, width in self.widths.items()}


def main(count: int) -> None:
    images = np.arange(count).astype(np.uint8).reshape(count, 1, 1, 1)
    real, fake = (Side.of(ArraySet(images, np.arange(count) % 10, name)) for name in ("real", "fake"))
    extractor = Noise("random:0", 2048)
    metrics = [metric for metric in default_metrics() if not isinstance(metric, KernelDistance)]
    metrics.append(KernelDistance(subsets=3))
    scores = evaluate_samples(fake, real, extractor, choose_metrics(metrics, extractor, real, fake))
    print(len(scores), peak_rss_bytes())


if __name__ == "__main__":
    main(int(sys.argv[1]))
