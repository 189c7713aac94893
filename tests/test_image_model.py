"""Latents of other shapes than 16x16x16: SD-VAE's many cells of few channels, DC-AE's few cells of many."""

import pytest
import torch
from model_fixtures import make_head, make_transformer

from scalear.draws import SeededDraws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.models.generator import Generator
from scalear.pyramid import LatentPyramid
from scalear.tokenizers.diffusers_adapters import DiffusersDC, DiffusersKL

STREAMS = [(0, 0), (0, 1)]


def sd_vae() -> DiffusersKL:
    """Stride 2, 4 channels."""
    return DiffusersKL(
        {
            "block_out_channels": [32, 32],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "latent_channels": 4,
        }
    )


def dc_ae() -> DiffusersDC:
    """Stride 4, 8 channels."""
    return DiffusersDC(
        {
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
            "scaling_factor": 0.3,
        }
    )


def make_generator(token_dim: int, patch_size: int, scales: str) -> Generator:
    transformer, head = make_transformer(scales, token_dim), make_head(token_dim, depth=1)
    return Generator(transformer, head, LatentPyramid(patch_size))


@pytest.mark.parametrize(
    ("make_tokenizer", "patch_size", "scales", "image_size"),
    [
        (sd_vae, 2, "1,2,4", (16, 16)),  # 8x8 cells of 4 channels, 4x4 tokens of 16
        (dc_ae, 1, "1,2,4", (16, 16)),  # 4x4 cells of 8 channels, as many tokens
        (sd_vae, 2, "1,2,2x4", (8, 16)),
    ],
)
def test_trains_on_and_generates_the_latents_of_a_diffusers_autoencoder(make_tokenizer, patch_size, scales, image_size):
    torch.manual_seed(0)
    tokenizer = make_tokenizer().eval()
    channels, size = tokenizer.latent_channels, tokenizer.latent_size(image_size)
    generator = make_generator(channels * patch_size**2, patch_size, scales)
    generator.check_latent(channels, size)

    image = torch.rand(2, 3, *image_size) * 2 - 1
    draws = SeededDraws(STREAMS)
    with torch.no_grad():
        latent = tokenizer.latent(tokenizer.moments(image), draws.normal("posterior", channels, *size))
    assert latent.shape == (2, channels, *size)
    pyramid = generator.pyramid.build(latent, generator.schedule)
    torch.testing.assert_close(generator.pyramid.latent(pyramid.targets, pyramid.schedule), latent)

    loss = generator.loss(pyramid, torch.tensor([0, 2]), draws)
    loss.total.backward()
    assert loss.per_scale["loss"].shape == (generator.schedule.num_scales,)
    assert generator.head.output_proj.weight.grad.abs().sum() > 0

    labels, solver = torch.tensor([1, 2]), FlowSolver(num_steps=2)
    sampled = generator.eval().generate(labels, SeededDraws(STREAMS), solver, Guidance(2.0))
    assert sampled.shape == latent.shape
    with torch.no_grad():
        assert tokenizer.decode(sampled).shape == image.shape


def test_refuses_a_latent_that_the_generator_was_not_built_for():
    generator = make_generator(token_dim=16, patch_size=2, scales="1,2,4")
    with pytest.raises(ValueError, match="8 channels and the patch size is 2: .* must be 32, not 16"):
        generator.check_latent(8, (8, 8))
    with pytest.raises(ValueError, match="end at 4 tokens, but the latent has 8"):
        generator.check_latent(4, (16, 16))
    with pytest.raises(ValueError, match="patch_size 2 does not divide the 7x8 latent"):
        generator.pyramid.build(torch.zeros(1, 4, 7, 8), generator.schedule)
