"""What a tokenizer adds to the contract of `scalear.tokenizers.base` when it can be trained here."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalear.draws import Draws
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.quantizer import Quantized


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
class TrainingRequest:
    """What a training pass needs beside the images.

    Attributes:
        draws: Source of random numbers for the batch.
        sizes: Latent sizes (h, w) to reconstruct at, besides the full one; for tokenizers that scale.
        penalties: Names of those that have a weight; costly ones are left out if nobody asks for them.
    """

    draws: Draws
    sizes: Sequence[tuple[int, int]] = ()
    penalties: Collection[str] = ()


@dataclass
class Reconstruction:
    """One training pass of a tokenizer at one size.

    Attributes:
        image_BCHW: The decoder's output.
        target_BCHW: The image that it is held to.
        penalties: What the bottleneck costs, by name; each (B,) or a mean over the batch.
        quantized: What went through the codebook, if there is one.
        scale: Name of the latent's size, such as "4"; empty for the full size.
    """

    image_BCHW: Tensor
    target_BCHW: Tensor
    penalties: dict[str, Tensor]
    quantized: Quantized | None = None
    scale: str = ""


class TrainableTokenizer(Tokenizer):
    """A tokenizer whose encoder and decoder are learned by `scalear.training.tokenizer.module`.

    Attributes:
        penalties: Names of all that its bottleneck may cost; see `Reconstruction`.
    """

    penalties: frozenset[str]

    @abstractmethod
    def reconstruct(self, image: Tensor, request: TrainingRequest) -> list[Reconstruction]:
        """image_BCHW there and back, differentiable: at full size, then at each of the request's sizes."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where reconstruction and adversarial gradients are balanced."""

    def posterior(self, image: Tensor) -> Posterior | None:
        """image_BCHW -> Gaussian over raw latents; None for discrete tokenizers, whose statistics stay the identity."""
        return None
