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


class FeatureExtractor(nn.Module, ABC):
    """A frozen network: always in eval mode, never trained, never part of a checkpoint (its weights have a file).

    The constructor reads no file; `load_weights` does, once, before use.

    Attributes:
        num_features: Width of the features; known once the weights are loaded.
    """

    num_features: int

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.weights = weights
        self.network: nn.Module | None = None
        self.register_load_state_dict_pre_hook(_keep_own_weights)

    @property
    @abstractmethod
    def name(self) -> str:
        """What a table says about numbers measured with this network: kind, weights and their SHA-256."""

    @abstractmethod
    def load_weights(self) -> None:
        """Read the weights, unless they are there.

        Raises:
            ValueError: The file is missing, damaged or another network's.
        """

    @abstractmethod
    def features(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images -> features_BF."""

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images (B, 1 or 3, H, W) -> features_BF, float32 whatever autocast surrounds the call."""
        if image_BCHW.dtype != torch.uint8 or image_BCHW.ndim != 4:
            raise ValueError(
                f"features need uint8 images (B, C, H, W), got {image_BCHW.dtype} of shape {tuple(image_BCHW.shape)}; "
                "convert with scalear.evaluation.images.to_uint8"
            )
        self.load_weights()
        # bfloat16 features would round FID itself: torchmetrics returns it in the features' type.
        with torch.autocast(image_BCHW.device.type, enabled=False):
            return self.features(image_BCHW).float()

    def train(self, mode: bool = True) -> "FeatureExtractor":
        return super().train(False)

    def state_dict(self, *args, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """Nothing: the weights live in their own file."""
        return {} if destination is None else destination

    def _checksum(self) -> str:
        path = Path(self.weights)
        return hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else "missing"


class ClassifierFeatures(FeatureExtractor):
    """Penultimate features of this repository's `ImageClassifier`, which also tells the class of an image.

    Args:
        weights: Path of the classifier's safetensors file.
    """

    def __init__(self, weights: str = "data/fashion-mnist/classifier.safetensors") -> None:
        super().__init__(weights)

    @property
    def name(self) -> str:
        return f"classifier {self.weights} ({self._checksum()})"

    def load_weights(self) -> None:
        if self.network is None:
            self.network = load_classifier(self.weights).requires_grad_(False)
            self.num_features = self.network.num_features

    def features(self, image_BCHW: Tensor) -> Tensor:
        if image_BCHW.shape[1] != self.network.image_channels:
            raise ValueError(
                f"{self.weights} was trained on images of {self.network.image_channels} channel(s), "
                f"got {image_BCHW.shape[1]}: use the extractor of this data set"
            )
        return self.network.features(image_BCHW.float() / 127.5 - 1)

    def predict(self, features_BF: Tensor) -> Tensor:
        """Class of each image from its features, (B,) int64."""
        self.load_weights()
        return self.network.head(features_BF).argmax(dim=1)


class InceptionFeatures(FeatureExtractor):
    """The 2048 pooled features of the Inception network of the FID papers (torch-fidelity's port of the TF weights).

    Images are resized to 299x299 with TensorFlow 1's bilinear rule, without antialiasing, as the original does.
    Grey images are repeated to RGB.

    Args:
        weights: Path of `pt_inception-2015-12-05-6726825d.pth`. Nothing is ever downloaded.
    """

    def __init__(self, weights: str) -> None:
        super().__init__(weights)
        self.num_features = 2048

    @property
    def name(self) -> str:
        return f"inception 2048 {self.weights} ({self._checksum()})"

    def load_weights(self) -> None:
        if self.network is not None:
            return
        if not Path(self.weights).is_file():
            raise ValueError(
                f"no Inception weights at {self.weights}; get pt_inception-2015-12-05-6726825d.pth from "
                "torch-fidelity's release page and set the extractor's `weights` to its path"
            )
        try:
            # torch-fidelity unpickles the file without restrictions: look at it with the safe loader first.
            torch.load(self.weights, map_location="cpu", weights_only=True)
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], self.weights, antialias=False)
        except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.weights} is damaged or not torch-fidelity's Inception: {error}") from error
        self.network.requires_grad_(False)

    def features(self, image_BCHW: Tensor) -> Tensor:
        return self.network(image_BCHW.expand(-1, 3, -1, -1))


def _keep_own_weights(extractor: FeatureExtractor, state_dict: dict, prefix: str, *_: object) -> None:
    """Let a strict `load_state_dict` of a parent find what `state_dict` left out."""
    own = nn.Module.state_dict(extractor)
    state_dict.update({prefix + name: tensor for name, tensor in own.items()})
