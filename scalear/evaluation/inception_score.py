"""Inception Score: how sure a classifier is of each sample, and how varied its verdicts are."""

import numpy as np
import torch

from scalear.evaluation.feature_set import FeatureSet, Needs
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.side import Side


class InceptionScore(SampleMetric):
    """exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016, section 4), averaged over consecutive splits.

    As ADM takes it: samples in the order of their file, a last split that may be smaller, and the Inception network's
    logits without their bias.

    Args:
        split_size: Samples of a split.
    """

    numbers = ("is", "is_std")
    fake = Needs(points=frozenset({"logits"}))
    better = "higher"

    def __init__(self, split_size: int = 5000) -> None:
        if split_size < 1:
            raise ValueError(f"split_size must be at least 1, got {split_size}")
        self.split_size = split_size

    def cautions(self, extractor: FeatureExtractor, real: Side, fake: Side) -> list[str]:
        count, size, lines = len(fake.images), self.split_size, []
        if count < size:
            lines.append(f"is of {count:,} samples, fewer than a split of {size:,}, is biased downwards")
        elif count % size:
            lines.append(f"is is biased downwards: the last split has {count % size:,} samples, the others {size:,}")
        if (labels := fake.images.labels) is not None:
            classes = len(np.unique(labels))
            seen = [len(np.unique(labels[start : start + size])) for start in range(0, count - size + 1, size)]
            if seen and min(seen) < 0.9 * min(classes, size):  # some are missing by chance where labels are drawn
                lines.append(
                    f"is takes splits of {size:,} samples in their order, and one has {min(seen)} of {classes} "
                    "classes: it is too small; let the classes take turns"
                )
        return lines

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """`is`, the mean over splits, and `is_std`, their standard deviation; not bound to `real`."""
        scores = []
        for logits_BK in fake.points["logits"].split(self.split_size):
            log_p_BK = logits_BK.double().log_softmax(dim=1)
            p_BK = log_p_BK.exp()
            log_mean_K = p_BK.mean(dim=0).log()
            # 0 log 0 is 0: a class that no sample has counts nothing.
            kl_BK = torch.where(p_BK > 0, p_BK * (log_p_BK - log_mean_K), 0.0)
            scores.append(kl_BK.sum(dim=1).mean().exp())
        score = torch.stack(scores)
        return {"is": score.mean().item(), "is_std": score.std(correction=0).item()}
