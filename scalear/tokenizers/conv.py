"""The convolutional encoder and decoder of the LDM family, and their shape. Any bottleneck goes between them.

One pair of classes expresses the published layouts. All of them have attention in the middle, and the encoder also
after every residual block of its coarsest level; the decoder there as well, or not:

                  channels  feature_channels  conv_size  decoder_attention
    MAR KL-16          128              null          1              false
    LlamaGen VQ-16     128               256          1               true
    VAR                160              null          3               true

Shapes: B batch, C channels, H W the feature map at hand.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 32  # channel counts must be multiples of it


@dataclass(frozen=True)
class ConvShape:
    """Widths, depths and resolutions of a convolutional tokenizer, apart from its images and its bottleneck.

    Raises:
        ValueError: `channels` is no multiple of 32, or there are no levels.
    """

    channels: int = 128
    """Width of the finest level, a multiple of 32."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level over `channels`, fine to coarse; one halving between levels."""
    num_res_blocks: int = 2
    """Residual blocks per level; the decoder has one more."""
    feature_channels: int | None = None
    """Channels between encoder or decoder and the convolutions around the bottleneck; None for those of the bottleneck:
    its moments on the side of the encoder, its latent on that of the decoder."""
    conv_size: int = 1
    """Kernel size of the two convolutions around the bottleneck, odd."""
    decoder_attention: bool = True
    """Attention after each residual block of the decoder's coarsest level, as the encoder has it."""
    patch_size: int = 1
    """Pixels per side that are folded into channels before the first and after the last convolution. Above 1 there are
    no convolutions at full resolution, which is what makes a CPU slow."""
    patch_shortcut: bool = False
    """Add a linear autoencoder of patches of stride x stride pixels beside encoder and decoder. It starts as the
    discrete cosine transform, so that the networks learn what a linear code lacks from the first step: many times fewer
    steps to sharp reconstructions (compare the shortcuts of DC-AE)."""
    pixel_channels: int = 0
    """Channels of two convolutions at full resolution, after patches are unfolded: what they cost is little, and no
    seams between patches are left. 0 for none."""

    def __post_init__(self) -> None:
        if not self.channel_multipliers or self.channels % NORM_GROUPS or min(self.widths) <= 0:
            raise ValueError(
                f"channels must be a multiple of {NORM_GROUPS} (group norm) and channel_multipliers a non-empty list "
                f"of positive integers, got channels={self.channels}, "
                f"channel_multipliers={tuple(self.channel_multipliers)}"
            )

    @property
    def widths(self) -> list[int]:
        """Channels of each level, fine to coarse."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def stride(self) -> int:
        """Pixels per latent cell and side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)


class ResidualBlock(nn.Module):
    """Twice normalise, swish, 3x3 convolution; a 1x1 convolution on the shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_1 = _group_norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_2 = _group_norm(out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden_BCHW = self.conv_1(F.silu(self.norm_1(x_BCHW)))
        hidden_BCHW = self.conv_2(F.silu(self.norm_2(hidden_BCHW)))
        return self.shortcut(x_BCHW) + hidden_BCHW


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions, a single head as wide as the feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        qkv_BCHW = self.qkv(self.norm(x_BCHW))
        q_B1LC, k_B1LC, v_B1LC = qkv_BCHW.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        attended_B1LC = self.attend(q_B1LC, k_B1LC, v_B1LC)
        return x_BCHW + self.out(attended_B1LC.squeeze(1).transpose(1, 2).reshape(x_BCHW.shape))

    def attend(self, q_B1LC: Tensor, k_B1LC: Tensor, v_B1LC: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(C)) v."""
        return F.scaled_dot_product_attention(q_B1LC, k_B1LC, v_B1LC)


class Downsample(nn.Module):
    """Halves the resolution by a strided 3x3 convolution, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution by repeating pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.attentions = nn.ModuleList(
            AttentionBlock(out_channels) if attention else nn.Identity() for _ in range(num_blocks)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x_BCHW = attention(block(x_BCHW))
        return x_BCHW


class Middle(nn.Sequential):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels))


class Encoder(nn.Module):
    """image_BCHW, folded into patches, -> feature map at 1 / 2^(levels - 1) of the resolution.

    Args:
        in_channels: Channels of the folded image.
        out_channels: Channels of the feature map.
        shape: Of the levels.
    """

    def __init__(self, in_channels: int, out_channels: int, shape: ConvShape) -> None:
        super().__init__()
        widths, coarsest = shape.widths, len(shape.widths) - 1
        self.conv_in = nn.Conv2d(in_channels, shape.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(widths[i - 1] if i else shape.channels, width, shape.num_res_blocks, attention=i == coarsest)
            for i, width in enumerate(widths)
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = Middle(widths[-1])
        self.norm_out = _group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BCHW = self.levels[0](self.conv_in(image_BCHW))
        for downsample, level in zip(self.downsamples, self.levels[1:], strict=True):
            x_BCHW = level(downsample(x_BCHW))
        return self.conv_out(F.silu(self.norm_out(self.middle(x_BCHW))))


class Decoder(nn.Module):
    """Feature map -> folded image_BCHW, 2^(levels - 1) times as large; `Encoder` reversed, with one more block a level.

    Args:
        in_channels: Channels of the feature map.
        out_channels: Channels of the folded image.
        shape: Of the levels.
    """

    def __init__(self, in_channels: int, out_channels: int, shape: ConvShape) -> None:
        super().__init__()
        widths = shape.widths[::-1]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0])
        self.levels = nn.ModuleList(  # in processing order, coarse to fine
            Level(widths[max(i - 1, 0)], width, shape.num_res_blocks + 1, shape.decoder_attention and i == 0)
            for i, width in enumerate(widths)
        )
        self.upsamples = nn.ModuleList(Upsample(width) for width in widths[:-1])
        self.norm_out = _group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        x_BCHW = self.levels[0](self.middle(self.conv_in(features_BCHW)))
        for upsample, level in zip(self.upsamples, self.levels[1:], strict=True):
            x_BCHW = level(upsample(x_BCHW))
        return self.conv_out(F.silu(self.norm_out(x_BCHW)))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)
