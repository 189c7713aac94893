"""KL-regularised autoencoder: the KL-16 of LDM and MAR, and laptop-size variants of the same class.

Shapes as in `scalear.tokenizers.base`.
"""

import torch
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
        patch_shortcut: Add a linear autoencoder of patches of stride x stride pixels beside encoder and decoder. It
            starts as the discrete cosine transform, so that the networks learn what a linear code lacks from the
            first step: many times fewer steps to sharp reconstructions (compare the shortcuts of DC-AE).
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
        patch_shortcut: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__(image_channels, latent_channels, patch_size * 2 ** (len(channel_multipliers) - 1))
        self.channels = channels
        self.channel_multipliers = tuple(channel_multipliers)
        self.num_res_blocks = num_res_blocks
        self.patch_size = patch_size
        self.patch_shortcut = patch_shortcut
        self.weights = weights
        folded, layout = image_channels * patch_size**2, (channels, self.channel_multipliers, num_res_blocks)
        self.encoder = Encoder(folded, 2 * latent_channels, *layout, coarse_attention=True)
        self.decoder = Decoder(latent_channels, folded, *layout, coarse_attention=False)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        if patch_shortcut:
            self.shortcut = PatchShortcut(image_channels, latent_channels, self.stride)
            # Begin as the linear code alone, with little posterior noise.
            for layer in (self.quant_conv, self.decoder.conv_out):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            nn.init.constant_(self.quant_conv.bias[latent_channels:], -4.0)

    def load_weights(self) -> None:
        if self.weights is not None:
            load_tokenizer(self, self.weights)

    def moments(self, image: Tensor) -> Tensor:
        self.latent_size(image.shape[-2:])
        moments = self.quant_conv(self.encoder(F.pixel_unshuffle(image, self.patch_size))).float()
        if not self.patch_shortcut:
            return moments
        mean, logvar = moments.chunk(2, dim=1)
        return torch.cat([mean + self.shortcut.encode(image), logvar], dim=1)

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
        image = F.pixel_shuffle(self.decoder(self.post_quant_conv(latent)), self.patch_size).float()
        return image + self.shortcut.decode(latent) if self.patch_shortcut else image

    def reconstruct(self, image: Tensor, noise: Tensor) -> Reconstruction:
        posterior = self.posterior(image)
        raw = self.decode_raw(posterior.sample(noise))
        # Losses see the clamped image, as users will; straight through, so that a value beyond black or white costs
        # nothing. The decoder then overshoots on flat areas, and noise in the latent leaves no trace there.
        clamped = raw + (raw.clamp(-1.0, 1.0) - raw).detach()
        return Reconstruction(clamped, {"kl": posterior.kl() / image[0].numel()})

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight


class PatchShortcut(nn.Module):
    """Linear code of square patches, and its inverse; both start as the lowest frequencies of the cosine transform.

    Args:
        image_channels: Channels of the image.
        latent_channels: Coefficients kept of each patch.
        patch_size: Side of the patches in pixels.
    """

    def __init__(self, image_channels: int, latent_channels: int, patch_size: int) -> None:
        super().__init__()
        if latent_channels > image_channels * patch_size**2:
            raise ValueError(
                f"patch_shortcut cannot make {latent_channels} latent channels of patches of "
                f"{image_channels}x{patch_size}x{patch_size} numbers"
            )
        self.to_latent = nn.Conv2d(image_channels, latent_channels, patch_size, patch_size)
        self.to_image = nn.ConvTranspose2d(latent_channels, image_channels, patch_size, patch_size)
        basis = _cosine_basis(image_channels, latent_channels, patch_size)
        with torch.no_grad():
            for layer in (self.to_latent, self.to_image):
                layer.weight.copy_(basis)
                layer.bias.zero_()

    def encode(self, image: Tensor) -> Tensor:
        """image_BCHW -> latent_BChw, float32."""
        return self.to_latent(image).float()

    def decode(self, latent: Tensor) -> Tensor:
        """latent_BChw -> image_BCHW, float32."""
        return self.to_image(latent).float()


def _cosine_basis(channels: int, count: int, size: int) -> Tensor:
    """The `count` lowest frequencies of the orthonormal two-dimensional DCT, (count, channels, size, size)."""
    place, frequency = torch.arange(size) + 0.5, torch.arange(size)
    rows = torch.cos(torch.pi / size * frequency[:, None] * place) * (2 / size) ** 0.5
    rows[0] *= 0.5**0.5
    order = sorted((u * u + v * v, u, v, c) for u in range(size) for v in range(size) for c in range(channels))
    basis = torch.zeros(count, channels, size, size)
    for k, (_, u, v, c) in enumerate(order[:count]):
        basis[k, c] = rows[u][:, None] * rows[v]
    return basis
