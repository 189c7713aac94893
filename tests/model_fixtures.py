"""Tiny generators whose every weight counts: fresh ones return zero."""

from functools import partial

import torch
from torch import nn

from scalear.models.blocks import FlowARBlock
from scalear.models.flow_head import FlowHead
from scalear.models.generator import Generator
from scalear.models.norms import PlainNorm
from scalear.models.positions import TokenPositions
from scalear.models.transformer import ScaleTransformer
from scalear.pyramid import LatentPyramid

NUM_CLASSES = 3


def make_transformer(scales: str = "1,2,4", context_dim: int = 4, **changes) -> ScaleTransformer:
    block = partial(FlowARBlock, num_heads=2, dropout=changes.pop("dropout", 0.0))
    parts = {"positions": TokenPositions, "block": block, "norm": PlainNorm}
    arguments = {"dim": 24, "depths": (1, 2), "num_classes": NUM_CLASSES, "scales": scales}
    arguments |= {"input_norm": True, "output_positions": True}
    return ScaleTransformer(context_dim, **parts | arguments | changes)


def make_head(token_dim: int = 4, cond_dim: int = 24, **changes) -> FlowHead:
    return FlowHead(token_dim, cond_dim, **{"dim": 32, "depth": 2, "num_heads": 2, "rotary_side": 4} | changes)


def make_generator(scales: str = "1,2,4", channels: int = 4, patch_size: int = 1, **changes) -> Generator:
    torch.manual_seed(0)
    token_dim = channels * patch_size**2
    parts = {"cross_attention": changes.pop("cross_attention", False)}
    transformer = make_transformer(scales, token_dim, dropout=changes.pop("dropout", 0.0))
    return Generator(transformer, make_head(token_dim, **parts), LatentPyramid(patch_size), **changes)


def randomise(module: nn.Module, std: float = 0.15) -> nn.Module:
    """Normal weights everywhere, also where a fresh model has zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std, generator=generator)
    return module
