"""Nearest training images of samples: whether a generator draws, or copies what it has seen.

Legend: N known images, M others, B of a block, E nearest, F features, H W pixels, C channels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalear.evaluation.feature_set import Needs, extract
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.image_set import ArraySet
from scalear.evaluation.images import make_grid

COPIES = 0.5
"""Where the samples' distance to training images, over that of real images, falls below, they are copies."""


@dataclass(frozen=True)
class Neighbours:
    """How far samples are from training images.

    Attributes:
        nearest: Median distance of samples to their nearest training image, over that of real images that were not
            trained on: about 1 where samples are new, 0 where they are copies.
        picture: uint8 (H, W, C): in each row a sample and the training images that are nearest to it.
    """

    nearest: float
    picture: NDArray[np.uint8]


def find_neighbours(
    samples: ArraySet, train: ArraySet, held_out: ArraySet, extractor: FeatureExtractor, shown: int = 8, each: int = 5
) -> Neighbours:
    """Compare samples with training images, mirrored ones too, by Euclidean distance of `pooled` features.

    Args:
        samples: Of a generator.
        train: What it was trained on.
        held_out: Real images that it was not trained on.
        extractor: The network that measures.
        shown: Samples in the picture: the first ones.
        each: Training images beside each.
    """
    mirrored = replace(train, images=np.ascontiguousarray(train.images[:, :, ::-1]))
    sample_MF, real_MF, *known = (_pooled(extractor, images) for images in (samples, held_out, train, mirrored))
    known_NF = torch.cat(known)
    distance_ME, place_ME = nearest(sample_MF, known_NF, min(each, len(known_NF)))
    real_distance_M1, _ = nearest(real_MF, known_NF, 1)
    rows = [
        np.concatenate([samples.images[row : row + 1], *(_image(train, place) for place in places)])
        for row, places in enumerate(place_ME[:shown].tolist())
    ]
    picture = make_grid(np.concatenate(rows), columns=len(rows[0]), scale=2)
    return Neighbours((distance_ME[:, 0].median() / real_distance_M1.median()).item(), picture)


def nearest(points_MF: Tensor, known_NF: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances of each point to the nearest known ones, in their order, and places of those: (M, count) each."""
    found = [
        torch.cdist(points_BF, known_NF, compute_mode="donot_use_mm_for_euclid_dist").topk(count, largest=False)
        for points_BF in points_MF.split(_BLOCK)
    ]
    return torch.cat([block.values for block in found]), torch.cat([block.indices for block in found])


_BLOCK = 256  # points whose distances to all known ones are held at once


def _pooled(extractor: FeatureExtractor, images: ArraySet) -> Tensor:
    return extract(extractor, images, Needs(frozenset({"pooled"}))).points["pooled"]


def _image(train: ArraySet, place: int) -> NDArray[np.uint8]:
    """A known image, (1, H, W, C): the second half of them is mirrored."""
    turned, row = divmod(place, len(train))
    image_1HWC = train.images[row : row + 1]
    return image_1HWC[:, :, ::-1] if turned else image_1HWC
