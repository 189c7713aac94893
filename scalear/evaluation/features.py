"""What an extractor of features promises: 8-bit images in, named float32 features out.

A number such as FID means nothing without the network that measured it, so every extractor has a `name` that goes
wherever its numbers go. Legend: B batch, C channels, H W pixels, F features.
"""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

RANDOM = "random:"
"""Begins `weights` that are a seed and no file; see `FeatureExtractor`."""


class FeatureExtractor(ABC):
    """A frozen network with a file of its own.

    It gives features by name. `pooled`, one vector of an image, is always there; the others are `spatial`, what sFID
    is taken of; `logits`, of a softmax over classes; and `texture`.

    Deliberately no `nn.Module`: whoever holds an extractor must neither train nor average its weights, nor store
    them in a checkpoint. The network is read at the first call and follows the images' device.

    Args:
        weights: Path of the network's file. Nothing is ever downloaded. `random:SEED` takes random weights instead:
            numbers for tests of the machinery, which compare with nothing.
        num_features: Width of `pooled`.
    """

    kind: ClassVar[str]
    """Name of the network in reports."""
    batch_size: ClassVar[int] = 250
    """Images that pass through the network at a time unless told otherwise."""
    knows_labels: ClassVar[bool] = False
    """Whether `logits` are of the classes that labels of images count."""

    def __init__(self, weights: str, num_features: int) -> None:
        self.weights = weights
        self.num_features = num_features
        self._network: nn.Module | None = None

    @property
    def name(self) -> str:
        """What stands beside numbers measured with this network: kind, resizing and the weights' SHA-256, begun.

        Extractors of one name give the same features; their files may lie at different paths.
        """
        path = Path(self.weights)
        if self.seed is not None:
            weights = f"random weights, seed {self.seed}"
        else:
            weights = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else f"no file {path}"
        return f"{self.kind} ({weights})"

    @property
    def seed(self) -> int | None:
        """Of random weights; None where they come from a file.

        Raises:
            ValueError: What follows `random:` is no number.
        """
        if not self.weights.startswith(RANDOM):
            return None
        seed = self.weights.removeprefix(RANDOM)
        if not seed.isdecimal():
            raise ValueError(f"random weights need a seed, as in {RANDOM}0, got {self.weights!r}")
        return int(seed)

    @property
    def network(self) -> nn.Module:
        """The network, in eval mode.

        Raises:
            ValueError: The file is missing, damaged or another network's.
        """
        if self._network is None:
            self._network = self._load().eval().requires_grad_(False)
        return self._network

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """Features by name, and how wide each is. Raises as `network` does."""

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 images (B, 1 or 3, H, W) -> features_BF by name, float32 whatever autocast surrounds the call."""
        if image_BCHW.dtype != torch.uint8 or image_BCHW.ndim != 4:
            raise ValueError(
                f"features need uint8 images (B, C, H, W), got {image_BCHW.dtype} of shape {tuple(image_BCHW.shape)}; "
                "convert with scalear.evaluation.images.to_uint8"
            )
        self.network.to(image_BCHW.device)
        # bfloat16 features would round FID itself.
        with torch.autocast(image_BCHW.device.type, enabled=False):
            features = {name: x_BF.float() for name, x_BF in self._features(image_BCHW).items()}
        if not all(x_BF.isfinite().all() for x_BF in features.values()):
            raise ValueError(f"features by {self.name} are not finite: its weights are damaged, copy them again")
        return features

    @abstractmethod
    def _load(self) -> nn.Module:
        """Read `weights`."""

    @abstractmethod
    def _features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 images -> features_BF by name."""
