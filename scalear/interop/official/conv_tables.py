"""Key tables of the convolutional encoder and decoder, in the two ways official files name the same layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scalear.interop.official.family import State, count, node
from scalear.interop.official.tables import Row, affine, prefixed, stacked
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.conv import AttentionBlock, Decoder, Encoder, Level


@dataclass(frozen=True)
class Naming:
    """How an official encoder and decoder spell their parts; `{level}` counts in processing order.

    Attributes:
        encoder_level: Prefix of an encoder level.
        decoder_level: Prefix of a decoder level; `{fine}` counts from the finest.
        block: Residual block inside a level.
        middle: The three parts of the middle.
        fused_qkv: One convolution for queries, keys and values, instead of three.
    """

    encoder_level: str
    decoder_level: str
    block: str
    middle: tuple[str, str, str]
    fused_qkv: bool


LDM = Naming("down.{level}", "up.{fine}", "block", ("mid.block_1", "mid.attn_1", "mid.block_2"), fused_qkv=False)
VAR = Naming("down.{level}", "up.{fine}", "block", ("mid.block_1", "mid.attn_1", "mid.block_2"), fused_qkv=True)
LLAMAGEN = Naming("conv_blocks.{level}", "conv_blocks.{level}", "res", ("mid.0", "mid.1", "mid.2"), fused_qkv=False)


def tokenizer_rows(model: ConvTokenizer, naming: Naming) -> list[Row]:
    """Key table of everything but the bottleneck."""
    return [
        *prefixed(_encoder_rows(model.encoder, naming), "encoder.", "encoder."),
        *prefixed(_decoder_rows(model.decoder, naming), "decoder.", "decoder."),
        *affine("quant_conv", "quant_conv"),
        *affine("post_quant_conv", "post_quant_conv"),
    ]


def latent_statistics(model: ConvTokenizer, std: float) -> dict[str, Tensor]:
    """Statistics of our tokenizers, which official files do not hold: zero mean, one standard deviation for all."""
    channels = model.latent_channels
    return {"latent_mean": torch.zeros(channels), "latent_std": torch.full((channels,), std)}


def _encoder_rows(encoder: Encoder, naming: Naming) -> list[Row]:
    rows = _ends_and_middle(naming)
    for level, module in enumerate(encoder.levels):
        theirs = naming.encoder_level.format(level=level)
        rows += _level(module, f"levels.{level}", theirs, naming)
        if level < len(encoder.downsamples):
            rows += affine(f"downsamples.{level}.conv", f"{theirs}.downsample.conv")
    return rows


def _decoder_rows(decoder: Decoder, naming: Naming) -> list[Row]:
    rows = _ends_and_middle(naming)
    for level, module in enumerate(decoder.levels):
        theirs = naming.decoder_level.format(level=level, fine=len(decoder.levels) - 1 - level)
        rows += _level(module, f"levels.{level}", theirs, naming)
        if level < len(decoder.upsamples):
            rows += affine(f"upsamples.{level}.conv", f"{theirs}.upsample.conv")
    return rows


def layout(state: State, naming: Naming) -> dict:
    """What the shapes of an official encoder tell of a `ConvShape`.

    Raises:
        ValueError: A width is not a multiple of the finest one.
    """
    prefix = "encoder." + naming.encoder_level.split("{")[0]
    channels = state["encoder.conv_in.weight"].shape[0]
    widths = [state[f"{prefix}{level}.{naming.block}.0.conv2.weight"].shape[0] for level in range(count(state, prefix))]
    if any(width % channels for width in widths):
        raise ValueError(f"levels of {widths} channels are not multiples of the first convolution's {channels}")
    return {
        "channels": channels,
        "channel_multipliers": [width // channels for width in widths],
        "num_res_blocks": count(state, f"{prefix}0.{naming.block}."),
    }


def tokenizer_node(state: State, shape: dict, bottleneck: dict) -> dict:
    """Our tokenizer as configs write it.

    Args:
        state: The official tensors, which tell the channels of images.
        shape: Arguments of its `ConvShape`.
        bottleneck: Part of it.
    """
    image_channels = state["encoder.conv_in.weight"].shape[1]
    return node(ConvTokenizer, shape=shape, bottleneck=bottleneck, image_channels=image_channels)


def _ends_and_middle(naming: Naming) -> list[Row]:
    rows = [*affine("conv_in", "conv_in"), *affine("norm_out", "norm_out"), *affine("conv_out", "conv_out")]
    before, attention, after = naming.middle
    return [
        *rows,
        *prefixed(_residual(False), "middle.0.", f"{before}."),
        *prefixed(_attention(naming), "middle.1.", f"{attention}."),
        *prefixed(_residual(False), "middle.2.", f"{after}."),
    ]


def _level(level: Level, ours: str, theirs: str, naming: Naming) -> list[Row]:
    rows = []
    for index, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
        shortcut = block.conv_1.in_channels != block.conv_1.out_channels
        rows += prefixed(_residual(shortcut), f"{ours}.blocks.{index}.", f"{theirs}.{naming.block}.{index}.")
        if isinstance(attention, AttentionBlock):
            rows += prefixed(_attention(naming), f"{ours}.attentions.{index}.", f"{theirs}.attn.{index}.")
    return rows


def _residual(shortcut: bool) -> list[Row]:
    rows = [row for part in ("norm", "conv") for i in (1, 2) for row in affine(f"{part}_{i}", f"{part}{i}")]
    return rows + (affine("shortcut", "nin_shortcut") if shortcut else [])


def _attention(naming: Naming) -> list[Row]:
    qkv = affine("qkv", "qkv") if naming.fused_qkv else stacked("qkv", "qkv")
    return [*affine("norm", "norm"), *qkv, *affine("out", "proj_out")]
