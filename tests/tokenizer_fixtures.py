"""Tiny tokenizers of every bottleneck, with random weights that are the same at every call."""

import torch

from scalear.class_paths import class_path
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.bottleneck import Bottleneck
from scalear.tokenizers.conv import ConvShape
from scalear.tokenizers.gaussian import Gaussian
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer

# The official architectures
KL16 = ConvShape(decoder_attention=False)
VQ16 = ConvShape(feature_channels=256)
VAR_VQVAE = ConvShape(channels=160, conv_size=3)
VAR_SCALES = "1,2,3,4,5,6,8,10,13,16"
# Architectures of diffusers' autoencoders: stride 2 and 4 channels, stride 4 and 8 channels
TINY_KL = {
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
}
TINY_DC = {
    "latent_channels": 8,
    "attention_head_dim": 8,
    "encoder_block_out_channels": [8, 16, 16],
    "decoder_block_out_channels": [8, 16, 16],
    "encoder_layers_per_block": [0, 1, 1],
    "decoder_layers_per_block": [1, 1, 1],
    "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_qkv_multiscales": [[], [], [5]],
    "decoder_qkv_multiscales": [[], [], [5]],
    "scaling_factor": 0.41407,
}


def make_kl(latent_channels: int = 4, **changes) -> ConvTokenizer:
    """`changes` are of the shape, the images or the weights."""
    return _make(lambda: Gaussian(latent_channels), {"decoder_attention": False} | changes)


def make_vq(latent_channels: int = 4, num_codes: int = 16, normalise: bool = True, **changes) -> ConvTokenizer:
    return _make(lambda: VectorQuantizer(latent_channels, num_codes, normalise), changes)


def make_residual(
    latent_channels: int = 4,
    num_codes: int = 16,
    scales: str | list = "1,2,4",
    num_phis: int = 3,
    phi_ratio: float = 0.5,
    normalise: bool = False,
    **changes,
) -> ConvTokenizer:
    arguments = latent_channels, num_codes, scales, num_phis, phi_ratio, normalise
    return _make(lambda: ResidualQuantizer(*arguments), changes)


def _make(bottleneck, changes: dict) -> ConvTokenizer:
    others = {name: changes.pop(name) for name in ("image_channels", "weights") if name in changes}
    shape = {"channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1} | changes
    torch.manual_seed(0)
    built: Bottleneck = bottleneck()
    return ConvTokenizer(ConvShape(**shape), built, **{"image_channels": 1} | others)


def tokenizer_part(bottleneck: type[Bottleneck], arguments: dict, **changes) -> dict:
    """As a config has it."""
    shape = {"channels": 32, "channel_multipliers": [1], "num_res_blocks": 1, "patch_size": 4}
    parts = {"shape": shape | changes, "bottleneck": _part(bottleneck, arguments)}
    return _part(ConvTokenizer, {"image_channels": 1} | parts)


def _part(kind: type, init_args: dict) -> dict:
    return {"class_path": class_path(kind), "init_args": init_args}
