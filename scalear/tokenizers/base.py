"""The contract between tokenizers and everything else.

Stages of an image, stated once:

    image_BCHW    float in [-1, 1]; H and W are multiples of `stride`
    moments_BMhw  what `moments` gives, not normalised, all that a latent shard must hold:
                  mean and log-variance, concatenated (KL), or the latent before quantisation (codes)
    latent_BChw   zero mean and unit variance by the stored statistics, per channel or over all; what generators see

The statistics live here and in the tokenizer's checkpoint, and nowhere else.
"""

import hashlib
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from scalear.scales import ScaleSchedule
from scalear.tokenizers.quantizer import Quantizer


class Tokenizer(nn.Module, ABC):
    """Images to latents and back.

    Args:
        image_channels: 1 (grey) or 3 (RGB).
        latent_channels: C of `latent_BChw`.
        stride: Pixels per latent cell and side.
        moments_dtype: How latent shards store moments. float16 for continuous tokenizers, float32 for
            discrete ones, whose codes flip when the latent is rounded.

    Attributes:
        weight_arguments: Constructor arguments that say where weights are; all others are the architecture.
    """

    weight_arguments: frozenset[str] = frozenset()
    latent_mean: Tensor  # (C,)
    latent_std: Tensor  # (C,)

    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        stride: int,
        moments_dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.latent_channels = latent_channels
        self.stride = stride
        self.moments_dtype = moments_dtype
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    @abstractmethod
    def load_weights(self) -> None:
        """Read the weights that the constructor's arguments name. Called before use by whoever trains or samples.

        Raises:
            ValueError: A file is missing or holds another architecture; names the file and the remedy.
        """

    @property
    @abstractmethod
    def has_weights(self) -> bool:
        """Whether `load_weights` reads any, so that no checkpoint is needed."""

    @property
    def not_in_weights(self) -> frozenset[str]:
        """Names of arguments, with those of their parts (`part.name`), that may differ from those of the weights."""
        return frozenset()

    @property
    def title(self) -> str:
        """What to call it in messages."""
        return type(self).__name__

    @property
    def quantizer(self) -> Quantizer | None:
        """Its codebook, if it has one. The statistics are then the identity: codes know raw latents only."""
        return None

    @property
    def has_posterior(self) -> bool:
        """Whether `latent` has more to give than a mode. Codes have not."""
        return self.quantizer is None

    @property
    def num_codes(self) -> int | None:
        """Size of the codebook, if there is one."""
        return None if self.quantizer is None else self.quantizer.num_codes

    @property
    def schedule(self) -> ScaleSchedule | None:
        """Scales of its own, if an image becomes all of them together (residual codes)."""
        return None

    @property
    def scales_freely(self) -> bool:
        """Whether a latent resized to any (h, w) is one of its latents too, and can be trained to decode well."""
        return False

    @abstractmethod
    def moments(self, image: Tensor) -> Tensor:
        """image_BCHW -> moments_BMhw, the part of encoding that is worth caching."""

    @abstractmethod
    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """moments_BMhw -> latent_BChw: the mode, or with standard normal `noise` (B, C, h, w) a posterior sample."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """latent_BChw -> image_BCHW in [-1, 1]."""

    def encode(self, image: Tensor) -> Tensor:
        """image_BCHW -> latent_BChw, the mode."""
        return self.latent(self.moments(image))

    def reconstruction(self, image: Tensor) -> Tensor:
        """image_BCHW there and back as a user gets it: the posterior's mode, or through the codebook."""
        latent = self.encode(image)
        return self.decode(latent if self.quantizer is None else self.quantizer.quantize(latent))

    def latent_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Side lengths (h, w) of the latent of an (H, W) image.

        Raises:
            ValueError: The stride does not divide a side.
        """
        height, width = image_size
        if height % self.stride or width % self.stride:
            near = "x".join(str(max(1, round(side / self.stride)) * self.stride) for side in image_size)
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the tokenizer's stride {self.stride}: take {near}, "
                "for example"
            )
        return height // self.stride, width // self.stride

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw latent to zero mean and unit variance per channel."""
        return (latent - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def denormalise(self, latent: Tensor) -> Tensor:
        """Inverse of `normalise`."""
        return latent * self.latent_std[:, None, None] + self.latent_mean[:, None, None]

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and bytes of all weights and statistics: which tokenizer made a latent."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
