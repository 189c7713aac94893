"""What labels tell: whether samples are of their class, and how varied each class is.

Legend: N images, F features, K classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.metric import SampleMetric

BLOCK = 1024  # images whose features are in float64 at a time


def balance_cautions(label_N: NDArray[np.int64]) -> list[str]:
    """What is to be known of numbers of samples with these labels, where real images have all classes alike."""
    classes, counts = np.unique(label_N, return_counts=True)
    most, missing = counts.argmax(), int(classes[-1]) + 1 - len(classes)
    if missing == 0 and counts[most] <= 2 * counts.mean():  # as much happens where labels are drawn
        return []
    return [
        f"classes are not sampled alike: class {classes[most]} has {counts[most]:,} of {len(label_N):,} samples, "
        f"{missing:,} classes before class {classes[-1]} have none"
    ]


class LabelAccuracy(SampleMetric):
    """Share of samples that the extractor takes for their label."""

    numbers = ("accuracy",)
    fake = Needs(points=frozenset({"logits"}), labels=True)
    needs_labels_known = True
    better = "higher"

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """`accuracy`, in [0, 1]; not bound to `real`."""
        return {"accuracy": (fake.points["logits"].argmax(dim=1) == fake.labels).double().mean().item()}


class ClassVariety(SampleMetric):
    """The sameness that strong guidance buys a good FID with: `class_variety` of the least varied class."""

    numbers = ("variety_min",)
    real = fake = Needs(points=frozenset({"pooled"}), labels=True)
    better = "higher"

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """`variety_min`; nothing where no class has two images on both sides."""
        num_classes = int(max(real.labels.max(), fake.labels.max())) + 1
        ratio_K = class_variety(real.points["pooled"], real.labels, fake.points["pooled"], fake.labels, num_classes)
        ratio_K = ratio_K[~ratio_K.isnan()]
        return {"variety_min": ratio_K.min().item()} if len(ratio_K) else {}


def class_variety(
    real_NF: Tensor, real_label_N: Tensor, fake_NF: Tensor, fake_label_N: Tensor, num_classes: int
) -> Tensor:
    """Spread of generated features over the spread of real ones, for every class.

    The spread of a class is the standard deviation of each feature, averaged over the features.

    Args:
        real_NF: Features of real images.
        real_label_N: Their classes, int64.
        fake_NF: Features of generated images, as many or not.
        fake_label_N: Their classes, int64.
        num_classes: K, more than the largest label.

    Returns:
        Ratio per class (K,) in float64; NaN where a class has fewer than two images on either side.

    Raises:
        ValueError: A label is out of range.
    """
    return _spread(fake_NF, fake_label_N, num_classes) / _spread(real_NF, real_label_N, num_classes)


def _spread(features_NF: Tensor, label_N: Tensor, num_classes: int) -> Tensor:
    if len(label_N) and (label_N.min() < 0 or label_N.max() >= num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {label_N.min()}..{label_N.max()}")
    count_K = label_N.bincount(minlength=num_classes).double()[:, None]
    total_KF = torch.zeros(num_classes, features_NF.shape[1], dtype=torch.float64)
    square_KF = torch.zeros_like(total_KF)
    for features_BF, label_B in zip(features_NF.split(BLOCK), label_N.split(BLOCK), strict=True):
        total_KF.index_add_(0, label_B, features_BF.double())
        square_KF.index_add_(0, label_B, features_BF.double().square())
    variance_KF = (square_KF - total_KF.square() / count_K) / (count_K - 1)
    return torch.where(count_K[:, 0] > 1, variance_KF.clamp(min=0).sqrt().mean(dim=1), torch.nan)
