"""What the small network that measures images learns: their labels, or where there are none, to find an image again.

Legend: B batch, C channels, H W pixels, F features.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalear.data.batch import Batch
from scalear.draws import Draws
from scalear.evaluation.classifier import ImageClassifier


class Target(nn.Module, ABC):
    """What is asked of a classifier about a batch.

    Attributes:
        measure: What the share of right answers is called.
    """

    measure: str

    @abstractmethod
    def loss(self, classifier: ImageClassifier, batch: Batch, draws: Draws) -> Tensor:
        """What training minimises, a scalar."""

    @abstractmethod
    def right(self, classifier: ImageClassifier, batch: Batch, draws: Draws) -> Tensor:
        """Which samples the network answers rightly, (B,) bool."""


class Labels(Target):
    """The class of an image, by cross-entropy."""

    measure = "accuracy"

    def loss(self, classifier: ImageClassifier, batch: Batch, draws: Draws) -> Tensor:
        return F.cross_entropy(classifier(batch.inputs).float(), batch.label)

    def right(self, classifier: ImageClassifier, batch: Batch, draws: Draws) -> Tensor:
        return classifier(batch.inputs).argmax(dim=1) == batch.label


class SameImage(Target):
    """Which of the other views of a batch is of the same image: SimCLR (Chen et al. 2020), with crops and tones.

    The loss is the symmetric cross-entropy of cosine similarities (InfoNCE), taken after a projection that only
    training has. It asks nothing of the images but that two crops of one have something in common. Predicting
    rotations (Gidaris et al. 2018), which is simpler, has no answer for what looks alike from all sides: textures,
    cells, views from above.

    Args:
        num_features: Width of the classifier's features.
        dim: Width of the projection.
        temperature: Of the similarities.
    """

    measure = "found_again"

    def __init__(self, num_features: int, dim: int = 64, temperature: float = 0.2) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(num_features, num_features), nn.ReLU(inplace=True), nn.Linear(num_features, dim)
        )
        self.temperature = temperature

    def loss(self, classifier: ImageClassifier, batch: Batch, draws: Draws) -> Tensor:
        first_BF, second_BF = (self.projection(x_BF) for x_BF in _views(classifier, batch, draws))
        similarity_BB = _cosines(first_BF, second_BF) / self.temperature
        places_B = torch.arange(len(batch), device=similarity_BB.device)
        return (F.cross_entropy(similarity_BB, places_B) + F.cross_entropy(similarity_BB.T, places_B)) / 2

    def right(self, classifier: ImageClassifier, batch: Batch, draws: Draws) -> Tensor:
        """By the features themselves, which are what measures."""
        similarity_BB = _cosines(*_views(classifier, batch, draws))
        return similarity_BB.argmax(dim=1) == torch.arange(len(batch), device=similarity_BB.device)


def _views(classifier: ImageClassifier, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
    """Features of two views of every image."""
    view_BCHW = torch.cat([random_view(batch.inputs, draws, name) for name in ("first", "second")])
    first_BF, second_BF = classifier.features(view_BCHW).float().chunk(2)
    return first_BF, second_BF


def _cosines(first_BF: Tensor, second_BF: Tensor) -> Tensor:
    return F.normalize(first_BF) @ F.normalize(second_BF).T


def random_view(image_BCHW: Tensor, draws: Draws, name: str) -> Tensor:
    """A square part of each image, a quarter of it at least, resized to the whole; every channel of another tone."""
    side_B1, place_B2 = 0.5 + 0.5 * draws.uniform(f"{name}_side", 1), draws.uniform(f"{name}_place", 2)
    centre_B2 = (2 * place_B2 - 1) * (1 - side_B1)  # in [-1, 1] over the image
    scale_B22 = torch.diag_embed(side_B1.expand(-1, 2))
    grid_BHW2 = F.affine_grid(
        torch.cat([scale_B22, centre_B2[..., None]], dim=2), image_BCHW.shape, align_corners=False
    )
    view_BCHW = F.grid_sample(image_BCHW, grid_BHW2, padding_mode="border", align_corners=False)
    gain_BC, offset_BC = (draws.uniform(f"{name}_{what}", image_BCHW.shape[1]) for what in ("gain", "offset"))
    return view_BCHW * (0.6 + 0.8 * gain_BC)[..., None, None] + (0.6 * offset_BC - 0.3)[..., None, None]
