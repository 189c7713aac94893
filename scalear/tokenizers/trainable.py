"""What a tokenizer adds to the contract of `scalear.tokenizers.base` when it can be trained here."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalear.tokenizers.base import Tokenizer


@dataclass
class Posterior:
    """Diagonal Gaussian over raw (not normalised) latents."""

    mean_BChw: Tensor
    logvar_BChw: Tensor

    @classmethod
    def from_moments(cls, moments_BChw: Tensor) -> "Posterior":
        """Split moments, in float32, into mean and clamped log-variance."""
        mean_BChw, logvar_BChw = moments_BChw.float().chunk(2, dim=1)
        return cls(mean_BChw, logvar_BChw.clamp(-30.0, 20.0))

    def sample(self, noise_BChw: Tensor) -> Tensor:
        """Latent of standard normal noise."""
        return self.mean_BChw + torch.exp(0.5 * self.logvar_BChw) * noise_BChw

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, (B,)."""
        nats_BChw = 0.5 * (self.mean_BChw.square() + self.logvar_BChw.exp() - 1.0 - self.logvar_BChw)
        return nats_BChw.flatten(1).sum(1)


@dataclass
class Reconstruction:
    """One training pass of a tokenizer.

    Attributes:
        image_BCHW: The decoder's output, not clamped.
        penalties: What the bottleneck costs, by name; each (B,).
    """

    image_BCHW: Tensor
    penalties: dict[str, Tensor]


class TrainableTokenizer(Tokenizer):
    """A tokenizer whose encoder and decoder are learned by `scalear.training.tokenizer_module`."""

    @abstractmethod
    def reconstruct(self, image: Tensor, noise: Tensor) -> Reconstruction:
        """image_BCHW there and back, differentiable; `noise` (B, C, h, w) is standard normal."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where reconstruction and adversarial gradients are balanced."""

    def posterior(self, image: Tensor) -> Posterior | None:
        """image_BCHW -> Gaussian over raw latents; None for discrete tokenizers, whose statistics stay the identity."""
        return None
