"""Models of the papers' sizes: as many parameters as the official ones, and they run."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from scalear.draws import SeededDraws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.models.blocks import FlowARBlock
from scalear.models.flow_head import FlowHead
from scalear.models.generator import Generator
from scalear.models.norms import ModulatedNorm, PlainNorm
from scalear.models.positions import GridPositions, LevelPositions, TokenPositions
from scalear.models.token_head import TokenHead
from scalear.models.transformer import ScaleTransformer
from scalear.models.var_block import VARBlock
from scalear.pyramid import CodePyramid, LatentPyramid, ResidualPyramid
from scalear.token_sampling import TokenSampling
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.kl import KLAutoencoder
from scalear.tokenizers.vq import ResidualVQTokenizer, VQTokenizer

FACTS = json.loads((Path(__file__).parent / "parity/facts.json").read_text())
SCALES = "1,2,3,4,5,6,8,10,13,16"
FLOWAR = {  # width, depths, heads; width and depth of the flow network, cross attention; entry of the facts
    "S": (768, [6, 6], 12, 1024, 2, False, "flowar_small"),
    "L": (1024, [8, 8], 16, 1024, 12, True, "flowar_large"),
    "H": (1536, [15, 15], 16, 1536, 12, True, "flowar_huge"),
}


def flowar(dim: int, depths: list[int], num_heads: int, flow_dim: int, depth: int, cross_attention: bool) -> Generator:
    transformer = ScaleTransformer(
        context_dim=16,
        dim=dim,
        depths=depths,
        num_classes=1000,
        scales="1,2,4,8,16",
        positions=TokenPositions,
        block=partial(FlowARBlock, num_heads=num_heads),
        norm=PlainNorm,
        input_norm=True,
        output_positions=True,
    )
    head = FlowHead(16, dim, flow_dim, depth, flow_dim // 64, cross_attention=cross_attention)
    return Generator(transformer, head, LatentPyramid())


def var_like(depth: int, flexible: bool, shared: bool = False) -> Generator:
    """VAR or FlexVAR dK: K blocks and heads, width 64 K."""
    transformer = ScaleTransformer(
        context_dim=32,
        dim=64 * depth,
        depths=[depth],
        num_classes=1000,
        scales=SCALES,
        positions=GridPositions if flexible else LevelPositions,
        block=partial(VARBlock, num_heads=depth, shared_modulation=shared, drop_path=0.1 * depth / 24),
        norm=ModulatedNorm,
        var_init=True,
    )
    head = TokenHead(8912 if flexible else 4096, 64 * depth)
    return Generator(transformer, head, CodePyramid() if flexible else ResidualPyramid())


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def on_meta():
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("size", FLOWAR)
def test_flowar(size, on_meta):
    *arguments, name = FLOWAR[size]
    model, facts = flowar(*arguments), FACTS["FlowAR"]["parameters"][name]
    assert num_parameters(model) == facts["total"]
    assert num_parameters(model.head) == facts["flow_net"]
    assert num_parameters(model.transformer) == facts["ar_transformer"]


def test_flowar_b_is_the_inferred_candidate(on_meta):
    candidate = FACTS["FlowAR"]["flowar_b_candidates_within_1_percent"][0]
    depths = [candidate["encoder_depth"], candidate["decoder_depth"]]
    flow = (candidate["flow_width"], candidate["flow_depth"], candidate["cross"])
    model = flowar(candidate["ar_width"], depths, 12, *flow)
    assert num_parameters(model) == candidate["params"] == 299_270_584


@pytest.mark.parametrize("depth", [12, 16, 20, 24, 30])
def test_var(depth, on_meta):
    assert num_parameters(var_like(depth, flexible=False)) == FACTS["VAR"]["parameters"][f"d{depth}"]


def test_var_d36_shares_its_modulation(on_meta):
    # The facts count the 256 px scales; the released model is for 512 px and has more positions.
    model = var_like(36, flexible=False, shared=True)
    assert num_parameters(model) == FACTS["VAR"]["parameters"]["d36_shared_aln"]


@pytest.mark.parametrize("depth", [16, 20, 24, 30])
def test_flexvar(depth, on_meta):
    assert num_parameters(var_like(depth, flexible=True)) == FACTS["FlexVAR"]["parameters"][f"d{depth}"]


def test_tokenizers(on_meta):
    llamagen = FACTS["LlamaGen"]["parameters"]
    assert num_parameters(KLAutoencoder()) == FACTS["mar"]["parameters"]["kl16"]
    assert num_parameters(ResidualVQTokenizer()) == FACTS["VAR"]["parameters"]["vqvae_ch160_V4096_C32"]
    assert num_parameters(VQTokenizer()) == llamagen["vq16_8912x32"] == FACTS["FlexVAR"]["parameters"]["vq16_8912x32"]
    assert num_parameters(VQTokenizer(latent_channels=8, num_codes=16384)) == llamagen["vq16_16384x8"]


def run_once(model: Generator, tokenizer: Tokenizer, sampling: object, guidance: Guidance) -> None:
    """One forward, one backward and one sampled image."""
    model.bind(tokenizer)
    draws = SeededDraws([(0, 0)])
    with torch.no_grad():
        latent = tokenizer.encode(torch.rand(1, tokenizer.image_channels, 256, 256) * 2 - 1)
    loss = model.loss(model.pyramid.build(latent, model.schedule), torch.tensor([207]), draws)
    loss.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    with torch.no_grad():
        latent = model.eval().generate(torch.tensor([207]), draws, sampling, guidance)
        image = tokenizer.decode(latent)
    assert image.shape == (1, 3, 256, 256) and image.isfinite().all() and image.abs().max() <= 1


@pytest.mark.slow
def test_flowar_s_runs():
    run_once(flowar(*FLOWAR["S"][:-1]), KLAutoencoder(), FlowSolver(num_steps=25, grid="flowar"), Guidance(4.3))


@pytest.mark.slow
def test_flexvar_d16_runs():
    sampling = TokenSampling(top_k=900, top_p=0.95)
    run_once(var_like(16, flexible=True), VQTokenizer(), sampling, Guidance(3.5, "flexvar"))
