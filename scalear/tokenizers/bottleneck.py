"""The contract of bottlenecks: what stands between the encoder and the decoder of a tokenizer.

Shapes: B batch, C latent channels, M channels of the moments, h w token map, l = h * w tokens. Latents here are raw, as
the decoder reads them; a tokenizer's statistics, which normalise them, are not the bottleneck's business.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalear.draws import Draws
from scalear.scales import ScaleSchedule


@dataclass
class Posterior:
    """Diagonal Gaussian over raw latents."""

    mean_BChw: Tensor
    logvar_BChw: Tensor

    @classmethod
    def from_moments(cls, moments_BMhw: Tensor) -> "Posterior":
        """Split moments, in float32, into mean and clamped log-variance."""
        mean_BChw, logvar_BChw = moments_BMhw.float().chunk(2, dim=1)
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
        sizes: Latent sizes (h, w) to reconstruct at, besides the full one; for tokenizers that scale freely.
        penalties: Names of those that have a weight; costly ones are left out if nobody asks for them.
    """

    draws: Draws
    sizes: Sequence[tuple[int, int]] = ()
    penalties: Collection[str] = ()


@dataclass
class Quantized:
    """What a latent became in a codebook: codes, and what they replaced.

    Attributes:
        codes: int64 (B, l) of each scale.
        vectors: What these codes replaced, (B, l, C) float32 of each scale, detached.
    """

    codes: list[Tensor]
    vectors: list[Tensor]


@dataclass
class Passage:
    """A latent that went through the bottleneck, in training.

    Attributes:
        latent_BChw: What the decoder reads.
        penalties: What it costs, by name; each (B,) or a mean over the batch.
        quantized: Its codes, if there is a codebook.
    """

    latent_BChw: Tensor
    penalties: dict[str, Tensor]
    quantized: Quantized | None = None


class Bottleneck(nn.Module, ABC):
    """From the moments that the encoder gives to the latent that the decoder reads.

    Every constructor argument is an attribute of the same name and a plain value, so that a tokenizer's file can say
    what it holds.

    Args:
        latent_channels: C.
        moments_channels: M, of which the first C are the latent before anything happens to it.
        moments_dtype: How latent shards store moments.

    Attributes:
        penalties: Names of all that it may cost in training.
        not_in_weights: Constructor arguments that may differ from those that the weights were trained with.
        linear_start: What the other M - C channels of the moments are while the tokenizer is a linear code yet, at the
            start of training with a `patch_shortcut`.
        schedule: Scales of its own, if a latent goes through at all of them together.
        scales_freely: Whether a latent of any size goes through by itself, and may be trained to.
    """

    penalties: frozenset[str]
    not_in_weights: frozenset[str] = frozenset()
    linear_start: float = 0.0
    schedule: ScaleSchedule | None = None
    scales_freely: bool = False

    def __init__(self, latent_channels: int, moments_channels: int, moments_dtype: torch.dtype) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.moments_channels = moments_channels
        self.moments_dtype = moments_dtype

    @abstractmethod
    def latent(self, moments_BMhw: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        """The latent_BChw that is encoded: the mode, or with standard normal noise a sample of the posterior."""

    @abstractmethod
    def forward(self, moments_BMhw: Tensor, request: TrainingRequest, num_elements: int) -> list[Passage]:
        """One pass of training: at full size, then at each of the request's sizes.

        Args:
            moments_BMhw: From the encoder, float32.
            request: Random numbers, sizes and penalties.
            num_elements: C * H * W of an image; penalties that sum over the latent are divided by it.
        """

    def posterior(self, moments_BMhw: Tensor) -> Posterior | None:
        """Gaussian over latents, whose statistics are worth measuring; None for codes, which stay as they are."""
        return None

    def check_gradients(self) -> None:  # noqa: B027
        """Refuse arguments by which some weights get no gradient, for which training on several ranks would wait.

        Raises:
            ValueError: Names the arguments and the remedy.
        """
