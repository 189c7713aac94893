"""Tiny generators whose every weight counts: fresh ones return zero."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from scalear.draws import SeededDraws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.image_model import ImageModel
from scalear.models.blocks import FlowARBlock
from scalear.models.flow_head import FlowHead
from scalear.models.injections import CrossSpatialAdaLN, FlowTransformer, SpatialAdaLN
from scalear.models.norms import ModulatedNorm, PlainNorm
from scalear.models.positions import GridPositions, LevelPositions, TokenPositions
from scalear.models.token_head import TokenHead
from scalear.models.transformer import ScaleTransformer
from scalear.models.var_block import VARBlock
from scalear.pyramid import CodePyramid, LatentPyramid, ResidualPyramid
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer

NUM_CLASSES = 3
NUM_CODES = 16


class LatentsAlone(Tokenizer):
    """For models that never see an image: latents are made elsewhere.

    Args:
        channels: Of latents.
        quantizer: Of codes, if there are any.
    """

    def __init__(self, channels: int = 4, quantizer: nn.Module | None = None) -> None:
        super().__init__(image_channels=1, latent_channels=channels, stride=1)
        self.bottleneck = quantizer

    has_weights = True

    def load_weights(self) -> None: ...

    @property
    def quantizer(self) -> nn.Module | None:
        return self.bottleneck

    @property
    def scales_freely(self) -> bool:
        return isinstance(self.bottleneck, VectorQuantizer)

    def moments(self, image: Tensor) -> Tensor:
        return image

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        return moments

    def decode(self, latent: Tensor) -> Tensor:
        return latent


class DoublingCodes(CodePyramid):
    """Serves scales that double, and no others."""

    def check(self, schedule: ScaleSchedule, size: tuple[int, int]) -> None:
        super().check(schedule, size)
        if any(fine != (2 * coarse[0], 2 * coarse[1]) for coarse, fine in pairwise(schedule.sizes)):
            raise ValueError(f"scales must double, got {schedule}")


def make_transformer(scales: str = "1,2,4", context_dim: int = 4, **changes) -> ScaleTransformer:
    return transformer_class(scales, **changes)(context_dim)


def transformer_class(scales: str = "1,2,4", **changes) -> Callable[[int], ScaleTransformer]:
    """FlowAR's."""
    block = partial(FlowARBlock, num_heads=2, dropout=changes.pop("dropout", 0.0))
    parts = {"positions": TokenPositions, "block": block, "norm": PlainNorm}
    arguments = {"dim": 24, "depths": (1, 2), "num_classes": NUM_CLASSES, "scales": scales}
    arguments |= {"input_norm": True, "output_positions": True}
    return partial(ScaleTransformer, **parts | arguments | changes)


def make_network(
    token_dim: int = 4, cond_dim: int = 24, cross_attention: bool = False, scales: str = "1,2,4", **changes
) -> FlowTransformer:
    return network_class(cross_attention, **changes)(token_dim, cond_dim, ScaleSchedule.parse(scales))


def network_class(cross_attention: bool = False, **changes) -> Callable[..., FlowTransformer]:
    network = CrossSpatialAdaLN if cross_attention else SpatialAdaLN
    return partial(network, **{"dim": 32, "depth": 2, "num_heads": 2} | changes)


def make_model(scales: str = "1,2,4", channels: int = 4, patch_size: int = 1, **changes) -> ImageModel:
    """FlowAR without a tokenizer."""
    torch.manual_seed(0)
    network = network_class(changes.pop("cross_attention", False))
    ours = {name: changes.pop(name) for name in ("dropout", "num_classes") if name in changes}
    return ImageModel(
        LatentsAlone(channels),
        partial(LatentPyramid, patch_size=patch_size),
        transformer_class(scales, **ours),
        partial(FlowHead, network=network),
        **{"sampling": FlowSolver("euler", 2), "guidance": Guidance()} | changes,
    )


def make_var_transformer(scales: str = "1,2,4", **changes) -> ScaleTransformer:
    return var_transformer_class(scales, **changes)(4)


def var_transformer_class(scales: str = "1,2,4", **changes) -> Callable[[int], ScaleTransformer]:
    """VAR's, or with other positions FlexVAR's; `block` is another class of blocks, or arguments of VAR's."""
    block = changes.pop("block", {})
    if isinstance(block, dict):
        block = partial(VARBlock, num_heads=changes.pop("num_heads", 2), **block)
    parts = {"positions": LevelPositions, "block": block, "norm": ModulatedNorm, "var_init": True}
    arguments = {"dim": 24, "depths": [2], "num_classes": NUM_CLASSES, "scales": scales}
    return partial(ScaleTransformer, **parts | arguments | changes)


def make_code_model(kind: Literal["var", "flexvar"], scales: str = "1,2,4", fast: bool = True, **changes) -> ImageModel:
    """A model of codes with a random codebook of 4 channels."""
    torch.manual_seed(0)
    flexible = kind == "flexvar"
    positions = partial(GridPositions, side=4) if flexible else LevelPositions
    transformer = var_transformer_class(scales, **{"positions": positions} | changes)
    quantizer = VectorQuantizer(4, NUM_CODES) if flexible else ResidualQuantizer(4, NUM_CODES, scales)
    pyramid = CodePyramid if flexible else ResidualPyramid
    how = TokenSampling(), Guidance()
    return ImageModel(LatentsAlone(4, quantizer), pyramid, transformer, TokenHead, *how, fast=fast)


def randomise(module: nn.Module, std: float = 0.15) -> nn.Module:
    """Normal weights everywhere, also where a fresh model has zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std, generator=generator)
    return module


def transformer_inputs(
    schedule: ScaleSchedule, dtype: torch.dtype = torch.float64, batch: int = 2
) -> tuple[Tensor, Tensor]:
    """Contexts of scales 1, 2 ... joined, and conditions."""
    generator = torch.Generator().manual_seed(3)
    context = torch.randn(batch, schedule.num_tokens - schedule.lengths[0], 4, dtype=dtype, generator=generator)
    return context, torch.randn(batch, 24, dtype=dtype, generator=generator)


def stepwise(transformer: ScaleTransformer, schedule: ScaleSchedule, context: Tensor, cond: Tensor) -> Tensor:
    """What the transformer makes of them scale by scale, with a cache."""
    cache = transformer.make_cache(schedule)
    contexts = [context[:, :0], *context.split(schedule.lengths[1:], dim=1)]
    return torch.cat([transformer.step(part, cond, cache) for part in contexts], dim=1)


def seeded(count: int) -> SeededDraws:
    """Draws of images 0, 1 ... of seed 0."""
    return SeededDraws([(0, index) for index in range(count)])
