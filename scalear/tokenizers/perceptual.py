"""Perceptual distances: how far two images are apart in the features of a frozen network.

Every distance takes two batches image_BCHW in [-1, 1] and gives one number per image, (B,).
"""

import pickle
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torchmetrics
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.vgg import cfgs, make_layers

# torchmetrics ships the linear heads of LPIPS, not the network below them.
LPIPS_HEADS = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
VGG_LAYERS = ("3", "8", "15", "22", "29")  # the last activation before each pooling
VGG_WIDTHS = (64, 128, 256, 512, 512)


class PerceptualDistance(nn.Module, ABC):
    """Contract of everything that `TokenizerLoss.perceptual` may be. Whoever trains with one keeps it frozen.

    Args:
        minimum_size: Smallest side in pixels for which the distance means something; below, losses go without it.
    """

    def __init__(self, minimum_size: int) -> None:
        super().__init__()
        self.minimum_size = minimum_size

    def load_weights(self) -> None:  # noqa: B027
        """Read the weights that the constructor's arguments name; nothing to do for a network passed in."""

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of each pair, (B,)."""


class FeatureDistance(PerceptualDistance):
    """Squared difference of channel-normalised features, averaged over positions, summed over layers.

    Args:
        network: Takes image_BCHW in [-1, 1]; must be traceable by `torch.fx`, as plain feed-forward networks are.
        layers: Names of the submodules whose outputs are compared, such as `stages.2`.
        minimum_size: Smallest side in pixels that it is for.
    """

    def __init__(self, network: nn.Module, layers: list[str], minimum_size: int = 1) -> None:
        super().__init__(minimum_size)
        self.network = create_feature_extractor(network.eval(), layers)
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self.network(x).values(), self.network(y).values(), strict=True)
        return sum(_difference(a, b).sum(1).mean((1, 2)) for a, b in pairs)


class LPIPS(PerceptualDistance):
    """Learned perceptual similarity (Zhang et al. 2018), version 0.1 on VGG-16, for images from 32x32.

    Four poolings leave 2x2 features of those; of 16x16 pixels they would leave a single one.

    Args:
        backbone: Path of torchvision's ImageNet weights of VGG-16 (`vgg16-397923af.pth`). Nothing is ever downloaded.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__(minimum_size=32)
        self.backbone = backbone
        self.features = make_layers(cfgs["D"], batch_norm=False)[: int(VGG_LAYERS[-1]) + 1]
        for module in self.features:
            if isinstance(module, nn.ReLU):
                module.inplace = False
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in VGG_WIDTHS)
        # ImageNet's channel mean and standard deviation, on images in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False)

    def load_weights(self) -> None:
        """Read VGG-16 and the heads.

        Raises:
            ValueError: `backbone` is missing or holds another network.
        """
        if not Path(self.backbone).is_file():
            raise ValueError(
                f"no VGG-16 weights for LPIPS at {self.backbone}: get vgg16-397923af.pth from "
                "https://download.pytorch.org/models/ and set `backbone` to its path, or leave LPIPS out"
            )
        try:
            state = torch.load(self.backbone, map_location="cpu", weights_only=True)
            prefix = "features."
            convolutions = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
            self.features.load_state_dict(convolutions)
        except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.backbone} does not hold torchvision's VGG-16: {error}") from error
        heads = torch.load(LPIPS_HEADS, map_location="cpu", weights_only=True)
        for i, head in enumerate(self.heads):
            head.weight.copy_(heads[f"lin{i}.model.1.weight"])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = ((image - self.shift) / self.scale for image in (x, y))
        distance_B, layers = x.new_zeros(len(x)), iter(self.heads)
        for name, module in self.features.named_children():
            x, y = module(x), module(y)
            if name in VGG_LAYERS:
                distance_B = distance_B + next(layers)(_difference(x, y)).mean((1, 2, 3))
        return distance_B


def _difference(x: Tensor, y: Tensor) -> Tensor:
    """Squared difference of features (B, C, H, W) scaled to unit length over channels, in float32."""
    x, y = (features.float() * (features.float().square().sum(1, keepdim=True) + 1e-8).rsqrt() for features in (x, y))
    return (x - y).square()
