"""The convolutional tokenizer: encoder, bottleneck, decoder. KL-16, VQ-16, VAR's VQVAE and laptop-size variants.

Shapes as in `scalear.tokenizers.base`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalear.scales import ScaleSchedule
from scalear.tokenizers.bottleneck import Bottleneck, Passage, Posterior, TrainingRequest
from scalear.tokenizers.conv import ConvShape, Decoder, Encoder
from scalear.tokenizers.quantizer import Quantizer
from scalear.tokenizers.trainable import Reconstruction, TrainableTokenizer
from scalear.tokenizers.weights import load_tokenizer


class ConvTokenizer(TrainableTokenizer):
    """Encoder, a convolution, the bottleneck, a convolution, decoder.

    Args:
        shape: Of the convolutional networks.
        bottleneck: What the latent goes through, and how many channels it has.
        image_channels: 1 (grey) or 3 (RGB).
        weights: Path of a `.safetensors` written by training (`save_tokenizer`); None for random weights.

    Raises:
        ValueError: `shape.patch_shortcut` cannot make as many latent channels of its patches.
    """

    weight_arguments = frozenset({"weights"})

    def __init__(
        self, shape: ConvShape, bottleneck: Bottleneck, image_channels: int, weights: str | None = None
    ) -> None:
        super().__init__(image_channels, bottleneck.latent_channels, shape.stride, bottleneck.moments_dtype)
        self.shape = shape
        self.weights = weights
        latent_channels, moments_channels = bottleneck.latent_channels, bottleneck.moments_channels
        encoded, decoded = (shape.feature_channels or own for own in (moments_channels, latent_channels))
        folded, padding = shape.patch_size**2, shape.conv_size // 2
        self.encoder = Encoder(image_channels * folded, encoded, shape)
        self.decoder = Decoder(decoded, (shape.pixel_channels or image_channels) * folded, shape)
        self.pixels = PixelConvolutions(shape.pixel_channels, image_channels) if shape.pixel_channels else nn.Identity()
        self.quant_conv = nn.Conv2d(encoded, moments_channels, shape.conv_size, padding=padding)
        self.bottleneck = bottleneck
        self.post_quant_conv = nn.Conv2d(latent_channels, decoded, shape.conv_size, padding=padding)
        if shape.patch_shortcut:
            self.shortcut = PatchShortcut(image_channels, latent_channels, self.stride)
            for layer in (self.quant_conv, self._output):  # begin as the linear code alone
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            nn.init.constant_(self.quant_conv.bias[latent_channels:], bottleneck.linear_start)

    def load_weights(self) -> None:
        if self.weights is not None:
            load_tokenizer(self, self.weights)

    @property
    def has_weights(self) -> bool:
        return self.weights is not None

    @property
    def not_in_weights(self) -> frozenset[str]:
        return frozenset(f"bottleneck.{name}" for name in self.bottleneck.not_in_weights)

    @property
    def title(self) -> str:
        return f"{super().title} with {type(self.bottleneck).__name__}"

    @property
    def quantizer(self) -> Quantizer | None:
        return self.bottleneck if isinstance(self.bottleneck, Quantizer) else None

    @property
    def schedule(self) -> ScaleSchedule | None:
        return self.bottleneck.schedule

    @property
    def scales_freely(self) -> bool:
        return self.bottleneck.scales_freely

    @property
    def penalties(self) -> frozenset[str]:
        return self.bottleneck.penalties

    def moments(self, image: Tensor) -> Tensor:
        """image_BCHW -> moments_BMhw, without autocast where there is a codebook.

        So the official code encodes: in bfloat16 some codes in a hundred would be others.
        """
        if self.quantizer is None:
            return self._encode(image)
        with torch.autocast(image.device.type, enabled=False):
            return self._encode(image.to(self.quant_conv.weight.dtype))

    def _encode(self, image: Tensor) -> Tensor:
        self.latent_size(image.shape[-2:])
        moments = self.quant_conv(self.encoder(F.pixel_unshuffle(image, self.shape.patch_size))).float()
        if not self.shape.patch_shortcut:
            return moments
        raw, rest = moments.tensor_split((self.latent_channels,), dim=1)
        return torch.cat([raw + self.shortcut.encode(image), rest], dim=1)

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.normalise(self.bottleneck.latent(moments, noise))

    def decode(self, latent: Tensor) -> Tensor:
        return self.decode_raw(self.denormalise(latent)).clamp(-1.0, 1.0)

    def decode_raw(self, latent: Tensor) -> Tensor:
        """Raw latent -> image_BCHW that is not clamped: what training and the official code see."""
        unfolded = F.pixel_shuffle(self.decoder(self.post_quant_conv(latent)), self.shape.patch_size)
        image = self.pixels(unfolded).float()
        return image + self.shortcut.decode(latent) if self.shape.patch_shortcut else image

    def decode_for_loss(self, latent: Tensor) -> Tensor:
        """Raw latent -> image_BCHW clamped to [-1, 1], straight through.

        Losses see the image as users will, but a value beyond black or white costs nothing. The decoder then
        overshoots on flat areas, and noise in the latent leaves no trace there.
        """
        raw = self.decode_raw(latent)
        return raw + (raw.clamp(-1.0, 1.0) - raw).detach()

    def passages(self, image: Tensor, request: TrainingRequest) -> list[Passage]:
        return self.bottleneck(self._encode(image), request, image[0].numel())

    def reconstruct(self, image: Tensor, request: TrainingRequest) -> list[Reconstruction]:
        reconstructions = []
        for passage in self.passages(image, request):
            decoded, target, scale = self.decode_for_loss(passage.latent_BChw), image, ""
            if reconstructions:  # below full size
                target = F.adaptive_avg_pool2d(image, decoded.shape[-2:])
                scale = str(ScaleSchedule((tuple(passage.latent_BChw.shape[-2:]),)))
            reconstructions.append(Reconstruction(decoded, target, passage.penalties, passage.quantized, scale))
        return reconstructions

    def posterior(self, image: Tensor) -> Posterior | None:
        return self.bottleneck.posterior(self.moments(image))

    def check_gradients(self) -> None:
        self.bottleneck.check_gradients()

    @property
    def last_layer(self) -> nn.Parameter:
        return self._output.weight

    @property
    def _output(self) -> nn.Conv2d:
        return self.pixels[-1] if self.shape.pixel_channels else self.decoder.conv_out


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
