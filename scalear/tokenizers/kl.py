"""KL-regularised autoencoder: the KL-16 of LDM and MAR, and laptop-size variants of the same class.

Shapes as in `scalear.tokenizers.base`.
"""

import torch
from torch import Tensor, nn

from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.trainable import Posterior, Reconstruction, TrainingRequest


class KLAutoencoder(ConvTokenizer):
    """Convolutional autoencoder with a Gaussian latent. The defaults are MAR's KL-16, 66.5M parameters.

    Args:
        image_channels: 1 (grey) or 3 (RGB).
        latent_channels: Channels of the latent.
        channels: Width of the finest level, a multiple of 32.
        channel_multipliers: Width of each level over `channels`, fine to coarse; one halving between levels.
        num_res_blocks: Residual blocks per level; the decoder has one more.
        patch_size: As in `ConvTokenizer`, what makes it fast on a CPU.
        patch_shortcut: As in `ConvTokenizer`, what makes training short.
        pixel_channels: As in `ConvTokenizer`, what hides the seams of patches.
        weights: Path of a `.safetensors` written by training (`save_tokenizer`); None for random weights.
    """

    penalties = frozenset({"kl"})

    def __init__(
        self,
        image_channels: int = 3,
        latent_channels: int = 16,
        channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        patch_size: int = 1,
        patch_shortcut: bool = False,
        pixel_channels: int = 0,
        weights: str | None = None,
    ) -> None:
        super().__init__(
            image_channels,
            latent_channels,
            channels,
            channel_multipliers,
            num_res_blocks,
            patch_size,
            patch_shortcut,
            pixel_channels,
            weights,
            moments_channels=2 * latent_channels,
            feature_channels=(2 * latent_channels, latent_channels),
            conv_size=1,
            coarse_attention=(True, False),
            moments_dtype=torch.float16,
        )
        if patch_shortcut:  # begin with little posterior noise
            nn.init.constant_(self.quant_conv.bias[latent_channels:], -4.0)

    def posterior(self, image: Tensor) -> Posterior:
        """image_BCHW -> Gaussian over raw latents."""
        return Posterior.from_moments(self.moments(image))

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        posterior = Posterior.from_moments(moments)
        return self.normalise(posterior.mean_BChw if noise is None else posterior.sample(noise))

    def reconstruct(self, image: Tensor, request: TrainingRequest) -> list[Reconstruction]:
        posterior = self.posterior(image)
        noise = request.draws.normal("posterior", *posterior.mean_BChw.shape[1:])
        decoded = self.decode_for_loss(posterior.sample(noise))
        return [Reconstruction(decoded, image, {"kl": posterior.kl() / image[0].numel()})]
