"""The convolutional autoencoder around every bottleneck: KL, VQ and residual VQ tokenizers derive from it.

Shapes as in `scalear.tokenizers.base`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalear.tokenizers.conv import Decoder, Encoder
from scalear.tokenizers.files import load_tokenizer
from scalear.tokenizers.trainable import TrainableTokenizer


class ConvTokenizer(TrainableTokenizer):
    """Encoder, a convolution, (bottleneck), a convolution, decoder; the derived class is the bottleneck.

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
        pixel_channels: Channels of two convolutions at full resolution, after patches are unfolded: what they cost is
            little, and no seams between patches are left. 0 for none.
        weights: Path of a `.safetensors` written by training (`save_tokenizer`); None for random weights.
        moments_channels: Channels that the encoder's convolution makes.
        feature_channels: Channels between encoder, decoder and their convolutions: (from the encoder, to the decoder).
        conv_size: Kernel size of the two convolutions.
        coarse_attention: Attention after each residual block of the coarsest level, of (encoder, decoder).
        moments_dtype: How latent shards store moments.
    """

    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        channels: int,
        channel_multipliers: tuple[int, ...],
        num_res_blocks: int,
        patch_size: int,
        patch_shortcut: bool,
        pixel_channels: int,
        weights: str | None,
        moments_channels: int,
        feature_channels: tuple[int, int],
        conv_size: int,
        coarse_attention: tuple[bool, bool],
        moments_dtype: torch.dtype,
    ) -> None:
        stride = patch_size * 2 ** (len(channel_multipliers) - 1)
        super().__init__(image_channels, latent_channels, stride, moments_dtype)
        self.channels = channels
        self.channel_multipliers = tuple(channel_multipliers)
        self.num_res_blocks = num_res_blocks
        self.patch_size = patch_size
        self.patch_shortcut = patch_shortcut
        self.pixel_channels = pixel_channels
        self.weights = weights
        layout, unfolded = (channels, self.channel_multipliers, num_res_blocks), pixel_channels or image_channels
        (encoded, decoded), padding = feature_channels, conv_size // 2
        self.encoder = Encoder(image_channels * patch_size**2, encoded, *layout, coarse_attention=coarse_attention[0])
        self.decoder = Decoder(decoded, unfolded * patch_size**2, *layout, coarse_attention=coarse_attention[1])
        self.pixels = PixelConvolutions(pixel_channels, image_channels) if pixel_channels else nn.Identity()
        self.quant_conv = nn.Conv2d(encoded, moments_channels, conv_size, padding=padding)
        self.post_quant_conv = nn.Conv2d(latent_channels, decoded, conv_size, padding=padding)
        if patch_shortcut:
            self.shortcut = PatchShortcut(image_channels, latent_channels, self.stride)
            for layer in (self.quant_conv, self._output):  # begin as the linear code alone
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def load_weights(self) -> None:
        if self.weights is not None:
            load_tokenizer(self, self.weights)

    def moments(self, image: Tensor) -> Tensor:
        self.latent_size(image.shape[-2:])
        moments = self.quant_conv(self.encoder(F.pixel_unshuffle(image, self.patch_size))).float()
        if not self.patch_shortcut:
            return moments
        raw, rest = moments.tensor_split((self.latent_channels,), dim=1)
        return torch.cat([raw + self.shortcut.encode(image), rest], dim=1)

    def decode(self, latent: Tensor) -> Tensor:
        return self.decode_raw(self.denormalise(latent)).clamp(-1.0, 1.0)

    def decode_raw(self, latent: Tensor) -> Tensor:
        """Raw latent -> image_BCHW that is not clamped: what training and the official code see."""
        unfolded = F.pixel_shuffle(self.decoder(self.post_quant_conv(latent)), self.patch_size)
        image = self.pixels(unfolded).float()
        return image + self.shortcut.decode(latent) if self.patch_shortcut else image

    def decode_for_loss(self, latent: Tensor) -> Tensor:
        """Raw latent -> image_BCHW clamped to [-1, 1], straight through.

        Losses see the image as users will, but a value beyond black or white costs nothing. The decoder then
        overshoots on flat areas, and noise in the latent leaves no trace there.
        """
        raw = self.decode_raw(latent)
        return raw + (raw.clamp(-1.0, 1.0) - raw).detach()

    @property
    def last_layer(self) -> nn.Parameter:
        return self._output.weight

    @property
    def _output(self) -> nn.Conv2d:
        return self.pixels[-1] if self.pixel_channels else self.decoder.conv_out


class PixelConvolutions(nn.Sequential):
    """Features of every pixel to its colour, with a look at its neighbours, which may be another patch's.

    Args:
        channels: Of the features.
        image_channels: Channels of the image.
    """

    def __init__(self, channels: int, image_channels: int) -> None:
        super().__init__(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, image_channels, 3, padding=1),
        )


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
