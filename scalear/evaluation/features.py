"""What an extractor of features promises: 8-bit images in, named float32 features out.

A number such as FID means nothing without the network that measured it, so every extractor has a `name` that goes
wherever its numbers go. Legend: B batch, C channels, H W pixels, F features.
"""

import functools
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
    published: ClassVar[dict[str, str]] = {}
    """What weights are called in the field, by the start of their SHA-256."""
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
        """What stands beside numbers measured with this network: its kind and the start of its weights' SHA-256.

        Extractors of one name give the same features, wherever their files lie.
        """
        if self.seed is not None:
            return f"{self.kind} (random weights, seed {self.seed})"
        checksum = _checksum(self.weights)[:8] if Path(self.weights).is_file() else f"no file {self.weights}"
        return f"{self.kind} ({self.published.get(checksum, checksum)})"

    @property
    def title(self) -> str:
        """`name`, and how good the network is, where that is known; stands in the lines of numbers."""
        return self.name

    @property
    def caution(self) -> str | None:
        """What is to be known of all numbers by this network."""
        return None

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
        self.check_channels(image_BCHW.shape[1])
        self.network.to(image_BCHW.device)
        # bfloat16 features would round FID itself.
        with torch.autocast(image_BCHW.device.type, enabled=False):
            features = {name: x_BF.float() for name, x_BF in self._features(image_BCHW).items()}
        if not all(x_BF.isfinite().all() for x_BF in features.values()):
            raise ValueError(f"features by {self.name} are not finite: its weights are damaged, copy them again")
        return features

    def check_channels(self, channels: int) -> None:  # noqa: B027
        """Refuse images that are not what the network was trained on. By default it takes grey ones and RGB.

        Raises:
            ValueError: So many channels it does not take.
        """

    @abstractmethod
    def _load(self) -> nn.Module:
        """Read `weights`."""

    @abstractmethod
    def _features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 images -> features_BF by name."""


@functools.cache  # files of weights may be large, and stay what they are
def _checksum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
