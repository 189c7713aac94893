"""Named feature extractors: 8-bit images in, float32 features out.

A number such as FID means nothing without the network that measured it, so every extractor has a `name` that goes
wherever its numbers go.
"""

import hashlib
import pickle
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3

from scalear.evaluation.classifier import load_classifier


class FeatureExtractor(ABC):
    """A frozen network with a file of its own.

    Deliberately no `nn.Module`: whoever holds an extractor must neither train nor average its weights, nor store
    them in a checkpoint. The network is read at the first call and follows the images' device.

    Args:
        weights: Path of the network's file. Nothing is ever downloaded.
        num_features: Width of the features.
    """

    def __init__(self, weights: str, num_features: int) -> None:
        self.weights = weights
        self.num_features = num_features
        self._network: nn.Module | None = None

    @property
    def name(self) -> str:
        """What stands beside numbers measured with this network: kind, weights and the start of their SHA-256."""
        path = Path(self.weights)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else "missing"
        return f"{type(self).__name__} {self.weights} ({checksum})"

    @property
    def network(self) -> nn.Module:
        """The network, in eval mode.

        Raises:
            ValueError: The file is missing, damaged or another network's.
        """
        if self._network is None:
            self._network = self._load().eval().requires_grad_(False)
        return self._network

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images (B, 1 or 3, H, W) -> features_BF, float32 whatever autocast surrounds the call."""
        if image_BCHW.dtype != torch.uint8 or image_BCHW.ndim != 4:
            raise ValueError(
                f"features need uint8 images (B, C, H, W), got {image_BCHW.dtype} of shape {tuple(image_BCHW.shape)}; "
                "convert with scalear.evaluation.images.to_uint8"
            )
        self.network.to(image_BCHW.device)
        # bfloat16 features would round FID itself: torchmetrics returns it in the features' type.
        with torch.autocast(image_BCHW.device.type, enabled=False):
            features_BF = self._features(image_BCHW).float()
        if not features_BF.isfinite().all():
            raise ValueError(f"features by {self.name} are not finite: its weights are damaged, copy them again")
        return features_BF

    @abstractmethod
    def _load(self) -> nn.Module:
        """Read `weights`."""

    @abstractmethod
    def _features(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images -> features_BF."""


class ClassifierFeatures(FeatureExtractor):
    """Penultimate features of this repository's `ImageClassifier`, which also tells the class of an image.

    Args:
        weights: Path of the classifier's safetensors file.
        num_features: Last width of the classifier.
    """

    def __init__(self, weights: str = "data/fashion-mnist/classifier.safetensors", num_features: int = 192) -> None:
        super().__init__(weights, num_features)

    def predict(self, features_BF: Tensor) -> Tensor:
        """Class of each image from its features, (B,) int64."""
        with torch.no_grad():
            return self.network.to(features_BF.device).head(features_BF).argmax(dim=1)

    @property
    def texture(self) -> "TextureFeatures":
        """The same network's view of texture."""
        return TextureFeatures(self.weights, sum(self.network.widths[:2]))

    def _load(self) -> nn.Module:
        classifier = load_classifier(self.weights)
        if classifier.num_features != self.num_features:
            raise ValueError(
                f"{self.weights} gives {classifier.num_features} features, not {self.num_features}: set num_features"
            )
        return classifier

    def _features(self, image_BCHW: Tensor) -> Tensor:
        if image_BCHW.shape[1] != self.network.image_channels:
            raise ValueError(
                f"{self.weights} was trained on images of {self.network.image_channels} channel(s), "
                f"got {image_BCHW.shape[1]}: use the extractor of this dataset"
            )
        return self.network.features(image_BCHW.float() / 127.5 - 1)


class TextureFeatures(FeatureExtractor):
    """Averages over the image of an `ImageClassifier`'s first layers: edges and weave, which its last layer forgets.

    Args:
        weights: Path of the classifier's safetensors file.
        num_features: Sum of its first two widths.
    """

    def _load(self) -> nn.Module:
        return load_classifier(self.weights)

    def _features(self, image_BCHW: Tensor) -> Tensor:
        return self.network.texture(image_BCHW.float() / 127.5 - 1)


class InceptionFeatures(FeatureExtractor):
    """The 2048 pooled features of the Inception network of the FID papers (torch-fidelity's port of the TF weights).

    Images are resized to 299x299 with TensorFlow 1's bilinear rule, without antialiasing, as the original does.
    Grey images are repeated to RGB.

    Args:
        weights: Path of `pt_inception-2015-12-05-6726825d.pth`.
    """

    def __init__(self, weights: str) -> None:
        super().__init__(weights, num_features=2048)

    def _load(self) -> nn.Module:
        if not Path(self.weights).is_file():
            raise ValueError(
                f"no Inception weights at {self.weights}; get pt_inception-2015-12-05-6726825d.pth from "
                "torch-fidelity's release page and set the extractor's `weights` to its path"
            )
        try:
            # torch-fidelity unpickles the file without restrictions: look at it with the safe loader first.
            torch.load(self.weights, map_location="cpu", weights_only=True)
            return NoTrainInceptionV3("inception-v3-compat", ["2048"], self.weights, antialias=False)
        except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.weights} is damaged or not torch-fidelity's Inception: {error}") from error

    def _features(self, image_BCHW: Tensor) -> Tensor:
        return self.network(image_BCHW.expand(-1, 3, -1, -1))
