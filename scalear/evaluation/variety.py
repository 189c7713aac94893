"""Variety within each class: the sameness that strong guidance buys a good FID with.

Legend: N images, F features, K classes.
"""

import torch
from torch import Tensor


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
    features_NF = features_NF.double()
    count_K = label_N.bincount(minlength=num_classes).double()[:, None]
    zeros_KF = features_NF.new_zeros(num_classes, features_NF.shape[1])
    total_KF = zeros_KF.index_add(0, label_N, features_NF)
    square_KF = zeros_KF.index_add(0, label_N, features_NF.square())
    variance_KF = (square_KF - total_KF.square() / count_K) / (count_K - 1)
    return torch.where(count_K[:, 0] > 1, variance_KF.clamp(min=0).sqrt().mean(dim=1), torch.nan)
