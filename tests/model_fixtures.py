"""Tiny generators whose every weight counts: fresh ones return zero."""

from functools import partial
from typing import Literal

import torch
from torch import nn

from scalear.models.blocks import FlowARBlock
from scalear.models.flow_head import FlowHead
from scalear.models.generator import Generator
from scalear.models.norms import ModulatedNorm, PlainNorm
from scalear.models.positions import GridPositions, LevelPositions, TokenPositions
from scalear.models.token_head import TokenHead
from scalear.models.transformer import ScaleTransformer
from scalear.models.var_block import VARBlock
from scalear.pyramid import CodePyramid, LatentPyramid, ResidualPyramid
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer

NUM_CLASSES = 3
NUM_CODES = 16


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
    ours = {name: changes.pop(name) for name in ("dropout", "num_classes") if name in changes}
    transformer = make_transformer(scales, token_dim, **ours)
    return Generator(transformer, make_head(token_dim, **parts), LatentPyramid(patch_size), **changes)


def make_var_transformer(scales: str = "1,2,4", **changes) -> ScaleTransformer:
    """VAR's, or with other positions FlexVAR's."""
    block = partial(VARBlock, num_heads=changes.pop("num_heads", 2), **changes.pop("block", {}))
    parts = {"positions": LevelPositions, "block": block, "norm": ModulatedNorm, "var_init": True}
    arguments = {"context_dim": 4, "dim": 24, "depths": [2], "num_classes": NUM_CLASSES, "scales": scales}
    return ScaleTransformer(**parts | arguments | changes)


class CodeTokenizer(nn.Module):
    """A quantizer alone, which is all that pyramids look at."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer


def make_code_generator(kind: Literal["var", "flexvar"], scales: str = "1,2,4", **changes) -> Generator:
    """A generator of codes, bound to a random codebook of 4 channels."""
    torch.manual_seed(0)
    flexible = kind == "flexvar"
    positions = partial(GridPositions, side=4) if flexible else LevelPositions
    transformer = make_var_transformer(scales, positions=positions, **changes)
    pyramid = CodePyramid() if flexible else ResidualPyramid()
    generator = Generator(transformer, TokenHead(NUM_CODES, transformer.dim), pyramid)
    quantizer = VectorQuantizer(4, NUM_CODES) if flexible else ResidualQuantizer(4, NUM_CODES, scales)
    generator.bind(CodeTokenizer(quantizer))
    return generator


def randomise(module: nn.Module, std: float = 0.15) -> nn.Module:
    """Normal weights everywhere, also where a fresh model has zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std, generator=generator)
    return module
