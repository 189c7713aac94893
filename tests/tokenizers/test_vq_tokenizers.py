import pytest
import torch
from recorded_draws import RecordedDraws
from tokenizer_fixtures import VAR_SCALES, VAR_VQVAE, VQ16, make_residual, make_vq
from torch.nn import functional as F

from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.bottleneck import TrainingRequest
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer
from scalear.tokenizers.weights import load_tokenizer, save_tokenizer


@pytest.mark.parametrize(
    "build, parameters",
    [
        (lambda: ConvTokenizer(VQ16, VectorQuantizer(32, 8912), 3), 72_049_827),  # FlexVAR
        (lambda: ConvTokenizer(VQ16, VectorQuantizer(8, 16384), 3), 71_883_403),  # LlamaGen
        (lambda: ConvTokenizer(VAR_VQVAE, ResidualQuantizer(32, 4096, VAR_SCALES), 3), 108_948_355),  # VAR
    ],
)
def test_full_sizes_have_the_official_parameters(build, parameters: int):
    with torch.device("meta"):
        tokenizer = build()
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == parameters
    assert tokenizer.stride == 16


@pytest.mark.parametrize("tokenizer", [make_vq(), make_vq(normalise=False, patch_shortcut=True), make_residual()])
def test_latents_are_float32_and_reconstructions_go_through_codes(tokenizer: ConvTokenizer):
    image = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        latent = tokenizer.encode(image)
    assert latent.dtype == tokenizer.moments_dtype == torch.float32
    latent = tokenizer.encode(image)
    assert torch.equal(tokenizer.latent(tokenizer.moments(image)), latent)
    expected = tokenizer.decode_raw(tokenizer.quantizer.quantize(latent)).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.reconstruction(image), expected)


def test_convolutions_of_pixels_reach_across_patches():
    """Without them a change in one patch's features stops at its seam; and a fresh tokenizer is its linear code."""
    seams = {}
    for channels in (0, 8):
        tokenizer = make_vq(channel_multipliers=(1,), patch_size=4, patch_shortcut=True, pixel_channels=channels)
        latent = torch.randn(1, 4, 4, 4)
        torch.testing.assert_close(tokenizer.decode_raw(latent), tokenizer.shortcut.decode(latent))
        torch.nn.init.normal_(tokenizer.last_layer, std=0.1)
        folded = torch.zeros(1, (channels or 1) * 16, 4, 4)
        folded[..., 1, 1] = torch.randn(folded.shape[1])
        blank = torch.zeros_like(folded)
        changed = tokenizer.pixels(F.pixel_shuffle(folded, 4)) != tokenizer.pixels(F.pixel_shuffle(blank, 4))
        changed[..., 4:8, 4:8] = False
        seams[channels] = changed.any().item()
    assert seams == {0: False, 8: True}


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_strides(levels: int):
    assert make_vq(channel_multipliers=(1,) * levels).stride == 2 ** (levels - 1)


def test_scalable_training_holds_every_size_to_the_resized_image():
    tokenizer = make_vq()
    image = torch.rand(2, 1, 8, 8) * 2 - 1
    request = TrainingRequest(RecordedDraws({}), sizes=[(1, 1), (2, 3)])
    full, single, wide = tokenizer.reconstruct(image, request)
    assert [r.scale for r in (full, single, wide)] == ["", "1", "2x3"]
    assert torch.equal(full.target_BCHW, image)
    torch.testing.assert_close(wide.target_BCHW, F.adaptive_avg_pool2d(image, (4, 6)))
    latent = F.adaptive_avg_pool2d(tokenizer.encode(image), (2, 3))
    torch.testing.assert_close(wide.image_BCHW, tokenizer.decode_raw(tokenizer.quantizer.quantize(latent)).clamp(-1, 1))
    assert single.image_BCHW.shape == single.target_BCHW.shape == (2, 1, 2, 2)
    assert full.penalties.keys() == {"codebook", "commitment"}
    (asked,) = tokenizer.reconstruct(image, TrainingRequest(RecordedDraws({}), penalties=["entropy"]))
    assert "entropy" in asked.penalties


def test_residual_weights_serve_other_scales_with_a_warning(tmp_path):
    """VAR's models for 256 and 512 px share one tokenizer."""
    path = tmp_path / "t.safetensors"
    save_tokenizer(make_residual(), path)
    with pytest.warns(UserWarning, match="bottleneck.scales is '1,2,4' in the file, '1,3,8' in the config"):
        load_tokenizer(make_residual(scales="1,3,8"), path)
    with pytest.raises(ValueError, match="bottleneck.num_phis is 3 in the file, 2 in the config. Align the two"):
        load_tokenizer(make_residual(scales="1,3,8", num_phis=2), path)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="num_codes >= 2"):
        make_vq(num_codes=1)
    with pytest.raises(ValueError, match="num_phis >= 1"):
        make_residual(num_phis=0)
    with pytest.raises(ValueError, match="scale 2 follows 4"):
        make_residual(scales="1,4,2")
    with pytest.raises(ValueError, match="end at 4 tokens, but the latent has 8"):
        make_residual().reconstruction(torch.zeros(1, 1, 16, 16))


def test_codes_are_those_of_an_encoder_in_float32():
    """Official VAR and FlexVAR encode outside autocast: in bfloat16 some codes in a hundred are others."""
    for tokenizer in (make_vq(), make_residual()):
        image = torch.rand(2, 1, 32, 32) * 2 - 1
        expected = tokenizer.moments(image)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(tokenizer.moments(image), expected)
