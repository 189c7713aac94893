"""Tokenizers with a codebook: LlamaGen's and FlexVAR's VQ-16, VAR's residual VQVAE, and laptop-size variants.

Shapes as in `scalear.tokenizers.base`. Moments are the latent before quantisation, statistics the identity.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from scalear.scales import ScaleSchedule
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.quantizer import Quantized, Quantizer, VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer
from scalear.tokenizers.trainable import Reconstruction, TrainingRequest


class CodeTokenizer(ConvTokenizer):
    """What tokenizers with a codebook share. `encode` gives the latent before quantisation, `decode` takes any."""

    quantizer: Quantizer

    @abstractmethod
    def quantize(self, latent: Tensor) -> Tensor:
        """latent_BChw -> the latent_BChw that its codes stand for."""

    @abstractmethod
    def scale_by_scale(self, latent: Tensor, schedule: ScaleSchedule) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes (B, l) of each scale, and the latent_BChw to decode once this scale is known."""

    @abstractmethod
    def quantized(self, image: Tensor, request: TrainingRequest) -> list[Quantized]:
        """image_BCHW through encoder and codebook in training, at full size and at each of the request's sizes."""

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        return moments.float()

    def reconstruction(self, image: Tensor) -> Tensor:
        return self.decode(self.quantize(self.encode(image)))

    def reconstruction_at(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """image_BCHW -> latent averaged to (h, w) -> the nearest code of each cell -> image (FlexVAR fig. 3)."""
        latent = F.adaptive_avg_pool2d(self.encode(image), size)
        return self.decode(self.quantizer.embed(self.quantizer.codes(latent), size))

    def reconstruct(self, image: Tensor, request: TrainingRequest) -> list[Reconstruction]:
        reconstructions = []
        for quantized in self.quantized(image, request):
            decoded = self.decode_for_loss(quantized.latent_BChw)
            target = F.adaptive_avg_pool2d(image, decoded.shape[-2:])  # the image itself at full size
            scale = str(ScaleSchedule((tuple(quantized.latent_BChw.shape[-2:]),))) if reconstructions else ""
            reconstructions.append(Reconstruction(decoded, target, quantized.penalties, quantized, scale))
        return reconstructions


class VQTokenizer(CodeTokenizer):
    """Autoencoder with one code per cell (FlexVAR section 3.3). The defaults are FlexVAR's VQ-16, 72.0M parameters.

    Latents of any size can be quantised and decoded; only training at several sizes (`sizes` of `TokenizerModule`)
    makes them decode well.

    Args:
        image_channels: 1 (grey) or 3 (RGB).
        latent_channels: Channels of latent and codes.
        num_codes: Size of the codebook.
        normalise_codes: Compare latents and codes by direction only (official code); False for Euclidean (paper).
        channels: Width of the finest level, a multiple of 32.
        channel_multipliers: Width of each level over `channels`, fine to coarse; one halving between levels, so that
            3, 4 or 5 of them give stride 4, 8 or 16.
        num_res_blocks: Residual blocks per level; the decoder has one more.
        feature_channels: Channels between the encoder or decoder and the 1x1 convolutions around the codebook.
        patch_size: As in `ConvTokenizer`, what makes it fast on a CPU.
        patch_shortcut: As in `ConvTokenizer`, what makes training short.
        pixel_channels: As in `ConvTokenizer`, what hides the seams of patches.
        weights: Path of a `.safetensors` written by training (`save_tokenizer`); None for random weights.
    """

    penalties = frozenset({"codebook", "commitment", "entropy"})

    def __init__(
        self,
        image_channels: int = 3,
        latent_channels: int = 32,
        num_codes: int = 8912,
        normalise_codes: bool = True,
        channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        feature_channels: int = 256,
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
            moments_channels=latent_channels,
            feature_channels=(feature_channels, feature_channels),
            conv_size=1,
            coarse_attention=(True, True),
            moments_dtype=torch.float32,
        )
        self.num_codes = num_codes
        self.normalise_codes = normalise_codes
        self.feature_channels = feature_channels
        self.quantizer = VectorQuantizer(num_codes, latent_channels, normalise_codes)

    def quantize(self, latent: Tensor) -> Tensor:
        return self.quantizer.embed(self.quantizer.codes(latent), latent.shape[-2:])

    def scale_by_scale(self, latent: Tensor, schedule: ScaleSchedule) -> Iterator[tuple[Tensor, Tensor]]:
        for size in schedule.sizes:
            codes = self.quantizer.codes(F.adaptive_avg_pool2d(latent, size))
            yield codes, self.quantizer.embed(codes, size)

    def quantized(self, image: Tensor, request: TrainingRequest) -> list[Quantized]:
        latent = self.moments(image)
        maps = [latent, *(F.adaptive_avg_pool2d(latent, size) for size in request.sizes)]
        return [self.quantizer(latent, entropy="entropy" in request.penalties) for latent in maps]


class ResidualVQTokenizer(CodeTokenizer):
    """Autoencoder with VAR's multi-scale residual codes. The defaults are VAR's, 108.9M parameters.

    Args:
        image_channels: 1 (grey) or 3 (RGB).
        latent_channels: Channels of latent and codes.
        num_codes: Size of the codebook, which all scales share.
        scales: Sides or sizes of the token maps, coarse to fine; the last is the latent's.
        num_phis: Convolutions of the quantizer: 1 shared, one per scale, or a number between (partially shared).
        phi_ratio: Their weight; 0 for none.
        normalise_codes: Compare latents and codes by direction only; False for Euclidean (as released).
        channels: Width of the finest level, a multiple of 32.
        channel_multipliers: Width of each level over `channels`, fine to coarse; one halving between levels.
        num_res_blocks: Residual blocks per level; the decoder has one more.
        conv_size: Kernel size of the convolutions around the quantizer, 1 or 3.
        patch_size: As in `ConvTokenizer`, what makes it fast on a CPU.
        patch_shortcut: As in `ConvTokenizer`, what makes training short.
        pixel_channels: As in `ConvTokenizer`, what hides the seams of patches.
        weights: Path of a `.safetensors` written by training (`save_tokenizer`); None for random weights.
    """

    penalties = frozenset({"codebook", "commitment"})
    not_in_weights = frozenset({"scales"})  # VAR uses one tokenizer for its lists of 256 and of 512 px

    def __init__(
        self,
        image_channels: int = 3,
        latent_channels: int = 32,
        num_codes: int = 4096,
        scales: str | list[int | list[int]] = "1,2,3,4,5,6,8,10,13,16",
        num_phis: int = 4,
        phi_ratio: float = 0.5,
        normalise_codes: bool = False,
        channels: int = 160,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        conv_size: int = 3,
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
            moments_channels=latent_channels,
            feature_channels=(latent_channels, latent_channels),
            conv_size=conv_size,
            coarse_attention=(True, True),
            moments_dtype=torch.float32,
        )
        self.num_codes = num_codes
        self.schedule = ScaleSchedule.parse(scales)
        self.scales = str(self.schedule)
        self.num_phis = num_phis
        self.phi_ratio = phi_ratio
        self.normalise_codes = normalise_codes
        self.conv_size = conv_size
        self.quantizer = ResidualQuantizer(num_codes, latent_channels, num_phis, phi_ratio, normalise_codes)

    def quantize(self, latent: Tensor) -> Tensor:
        return self.quantizer.quantize(latent, self.schedule)

    def scale_by_scale(self, latent: Tensor, schedule: ScaleSchedule) -> Iterator[tuple[Tensor, Tensor]]:
        return ((codes, f_hat) for codes, _, f_hat in self.quantizer.steps(latent, schedule))

    def quantized(self, image: Tensor, request: TrainingRequest) -> list[Quantized]:
        return [self.quantizer(self.moments(image), self.schedule)]
