"""KL-regularised autoencoder: the KL-16 of LDM and MAR, and laptop-size variants of the same class.

Shapes as in `scalear.tokenizers.base`.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from scalear.tokenizers.conv import Decoder, Encoder
from scalear.tokenizers.files import load_tokenizer
from scalear.tokenizers.trainable import Posterior, Reconstruction, TrainableTokenizer


class KLAutoencoder(TrainableTokenizer):
    """Convolutional autoencoder with a Gaussian latent. The defaults are MAR's KL-16, 66.5M parameters.

    Args:
        image_channels: 1 (grey) or 3 (RGB).
        latent_channels: Channels of the latent.
        channels: Width of the finest level, a multiple of 32.
        channel_multipliers: Width of each level over `channels`, fine to coarse; one halving between levels.
        num_res_blocks: Residual blocks per level; the decoder has one more.
        patch_size: Pixels per side that are folded into channels before the first and after the last convolution.
            Above 1 there are no convolutions at full resolution, which is what makes a CPU slow.
        weights: Path of a `.safetensors` written by training (`save_tokenizer`); None for random weights.
    """

    def __init__(
        self,
        image_channels: int = 3,
        latent_channels: int = 16,
        channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        patch_size: int = 1,
        weights: str | None = None,
    ) -> None:
        super().__init__(image_channels, latent_channels, patch_size * 2 ** (len(channel_multipliers) - 1))
        self.channels = channels
        self.channel_multipliers = tuple(channel_multipliers)
        self.num_res_blocks = num_res_blocks
        self.patch_size = patch_size
        self.weights = weights
        folded, layout = image_channels * patch_size**2, (channels, self.channel_multipliers, num_res_blocks)
        self.encoder = Encoder(folded, 2 * latent_channels, *layout, coarse_attention=True)
        self.decoder = Decoder(latent_channels, folded, *layout, coarse_attention=False)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def load_weights(self) -> None:
        if self.weights is not None:
            load_tokenizer(self, self.weights)

    def moments(self, image: Tensor) -> Tensor:
        self.latent_size(image.shape[-2:])
        return self.quant_conv(self.encoder(F.pixel_unshuffle(image, self.patch_size))).float()

    def posterior(self, image: Tensor) -> Posterior:
        """image_BCHW -> Gaussian over raw latents."""
        return Posterior.from_moments(self.moments(image))

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        posterior = Posterior.from_moments(moments)
        return self.normalise(posterior.mean_BChw if noise is None else posterior.sample(noise))

    def decode(self, latent: Tensor) -> Tensor:
        return self.decode_raw(self.denormalise(latent)).clamp(-1.0, 1.0)

    def decode_raw(self, latent: Tensor) -> Tensor:
        """Raw latent -> image_BCHW that is not clamped: what training and the official code see."""
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(latent)), self.patch_size).float()

    def reconstruct(self, image: Tensor, noise: Tensor) -> Reconstruction:
        posterior = self.posterior(image)
        return Reconstruction(self.decode_raw(posterior.sample(noise)), {"kl": posterior.kl() / image[0].numel()})

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight
