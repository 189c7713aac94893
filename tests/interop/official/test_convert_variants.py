"""Official options that no recording has: keys and shapes as the official classes spell them, there and back."""

import pytest
import torch
from model_fixtures import randomise
from torch import nn

from scalear.class_paths import build
from scalear.interop.official.convert import Conversion, convert_state, revert_state
from scalear.interop.official.family import node
from scalear.models.generator import Generator
from scalear.models.norms import ModulatedNorm
from scalear.models.positions import GridPositions, LevelPositions
from scalear.models.token_head import TokenHead
from scalear.models.transformer import ScaleTransformer
from scalear.models.var_block import VARBlock
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.gaussian import Gaussian
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer

SHAPE = {"channels": 32, "channel_multipliers": [1, 2], "num_res_blocks": 1}


def residual(conv_size: int = 3, **changes) -> dict:
    bottleneck = node(ResidualQuantizer, **{"latent_channels": 4, "num_codes": 8, "scales": "1,2,4"} | changes)
    return node(ConvTokenizer, image_channels=3, shape=SHAPE | {"conv_size": conv_size}, bottleneck=bottleneck)


def official(family: str, config: dict) -> dict[str, torch.Tensor]:
    """The official state dict of a random model of ours."""
    model = randomise(build(nn.Module, config))
    return revert_state(Conversion(family, config, model.state_dict()))


def var(family: str, **block) -> dict:
    transformer = node(
        ScaleTransformer,
        dim=16,
        depths=[2],
        num_classes=5,
        scales=[1, 2, 3],
        positions=node(LevelPositions) if family == "var" else node(GridPositions, side=32),
        block=node(VARBlock, num_heads=2, **block),
        norm=node(ModulatedNorm),
        var_init=True,
    )
    return node(Generator, content={"dim": 4, "num_codes": 8}, transformer=transformer, head=node(TokenHead))


@pytest.mark.parametrize("family", ["var", "flexvar"])
@pytest.mark.parametrize("normalise", [True, False])
def test_shared_modulation(family, normalise):
    state = official(family, var(family, shared_modulation=True, normalise=normalise))
    assert state["shared_ada_lin.1.weight"].shape == (96, 16)
    assert state["blocks.1.ada_gss"].shape == (1, 1, 6, 16)
    assert "blocks.1.ada_lin.1.weight" not in state
    assert ("blocks.0.attn.scale_mul_1H11" in state) == normalise
    arguments = {} if normalise else {"num_heads": 2}
    conversion = convert_state(state, arguments=arguments)
    assert conversion.family == family
    assert_same(revert_state(conversion), state)
    if not normalise:
        with pytest.raises(ValueError, match="num_heads"):
            convert_state(state)


@pytest.mark.parametrize(
    "num_phis, arguments, key",
    [
        (1, {}, "quantize.quant_resi.qresi.weight"),
        (2, {"share_quant_resi": 2}, "quantize.quant_resi.qresi_ls.1.weight"),
        (3, {"share_quant_resi": 0}, "quantize.quant_resi.2.weight"),
    ],
)
@pytest.mark.parametrize("conv_size", [1, 3])
def test_phis_and_convolutions_of_vars_tokenizer(num_phis, arguments, key, conv_size):
    config = residual(conv_size, num_phis=num_phis)
    state = official("var-vqvae", config)
    assert state[key].shape == (4, 4, 3, 3) and state["quant_conv.weight"].shape[-1] == conv_size
    given = {"v_patch_nums": [1, 2, 4], "using_znorm": True, "quant_resi": -0.3, "quant_conv_ks": conv_size}
    conversion = convert_state(state, "var-vqvae", given | arguments)
    model = conversion.model()
    assert len(model.quantizer.phis) == num_phis
    assert model.quantizer.normalise and model.quantizer.phi_ratio == 0.3
    assert_same(revert_state(conversion), state)


def test_partially_shared_phis_may_be_as_many_as_scales():
    config = residual(num_phis=3)
    state = official("var-vqvae", config)
    renamed = {key.replace("quant_resi.", "quant_resi.qresi_ls."): tensor for key, tensor in state.items()}
    conversion = convert_state(renamed, arguments={"v_patch_nums": [1, 2, 4]})
    assert_same(revert_state(conversion), renamed)


def test_tokenizers_without_phi():
    config = residual(phi_ratio=0.0)
    state = official("var-vqvae", config)
    assert not [key for key in state if "quant_resi" in key]
    conversion = convert_state(state, arguments={"v_patch_nums": [1, 2, 4], "quant_resi": 0.0})
    assert conversion.model().quantizer.phi_ratio == 0
    assert_same(revert_state(conversion), state)


def test_codes_searched_by_direction_are_used_as_they_are():
    quantizer = randomise(ResidualQuantizer(4, 8, "1,2", normalise=True), std=1.0)
    vectors = torch.randn(3, 4)
    nearest = quantizer.nearest(vectors)
    cosine = nn.functional.cosine_similarity(vectors[:, None], quantizer.codebook[None], dim=-1)
    assert torch.equal(nearest, cosine.argmax(1))
    embedded = quantizer.embed(nearest[None], (1, 3))
    assert torch.equal(embedded[0, :, 0].T, quantizer.codebook[nearest])


@pytest.mark.parametrize(
    "family, differing, bottleneck",
    [
        ("kl16", {"decoder_attention": False}, node(Gaussian, latent_channels=4)),
        ("vq16", {"feature_channels": 6}, node(VectorQuantizer, latent_channels=4, num_codes=8)),
    ],
)
def test_three_levels_and_two_blocks(family, differing, bottleneck):
    shape = SHAPE | {"channel_multipliers": [1, 2, 2], "num_res_blocks": 2} | differing
    state = official(family, node(ConvTokenizer, image_channels=3, shape=shape, bottleneck=bottleneck))
    conversion = convert_state(state)
    assert conversion.family == family
    assert_same(revert_state(conversion), state)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
