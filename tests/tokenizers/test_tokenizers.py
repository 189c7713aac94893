import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from recorded_draws import RecordedDraws
from tokenizer_fixtures import KL16, TINY_DC, TINY_KL, make_kl

from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.bottleneck import Posterior, TrainingRequest
from scalear.tokenizers.diffusers_adapters import DiffusersDC, DiffusersKL
from scalear.tokenizers.gaussian import Gaussian
from scalear.tokenizers.weights import load_tokenizer, save_tokenizer


@pytest.fixture
def tokenizer() -> ConvTokenizer:
    tokenizer = make_kl(patch_size=2).eval()
    tokenizer.latent_mean.normal_()
    tokenizer.latent_std.uniform_(0.5, 2.0)
    return tokenizer


def test_kl16_has_the_official_parameters():
    with torch.device("meta"):
        tokenizer = ConvTokenizer(KL16, Gaussian(16), 3)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 66_456_019
    assert tokenizer.stride == 16
    encoder, decoder = tokenizer.encoder.state_dict(), tokenizer.decoder.state_dict()
    levels_with_attention = {name.split(".")[1] for name in encoder if "attentions" in name}
    assert levels_with_attention == {"4"}
    assert not any("attentions" in name for name in decoder)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_shapes_and_stride_of_non_square_images(patch_size: int):
    tokenizer = make_kl(patch_size=patch_size)
    image = torch.rand(2, 1, 16, 24)
    moments = tokenizer.moments(image)
    assert tokenizer.stride == 2 * patch_size
    assert moments.shape == (2, 8, *tokenizer.latent_size((16, 24)))
    decoded = tokenizer.decode(tokenizer.latent(moments))
    assert decoded.shape == image.shape
    assert decoded.abs().max() <= 1
    with pytest.raises(ValueError, match="not a multiple of the tokenizer's stride"):
        tokenizer.moments(torch.rand(1, 1, 16, 17))


def test_latents_are_normalised_by_the_statistics(tokenizer: ConvTokenizer):
    moments = tokenizer.moments(torch.rand(3, 1, 16, 16))
    noise = torch.randn(3, 4, 4, 4)
    posterior = Posterior.from_moments(moments)
    raw = posterior.mean_BChw + posterior.logvar_BChw.div(2).exp() * noise
    expected = (raw - tokenizer.latent_mean[:, None, None]) / tokenizer.latent_std[:, None, None]
    torch.testing.assert_close(tokenizer.latent(moments, noise), expected)
    torch.testing.assert_close(tokenizer.denormalise(tokenizer.latent(moments)), posterior.mean_BChw)


def test_posterior_agrees_with_torch_distributions():
    moments = torch.randn(2, 8, 3, 3)
    moments[0, 4] = 100.0  # beyond the clamp
    posterior = Posterior.from_moments(moments)
    assert posterior.logvar_BChw.max() == 20.0
    normal = torch.distributions.Normal(posterior.mean_BChw, posterior.logvar_BChw.div(2).exp())
    reference = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(posterior.kl(), reference)


def test_bf16_autocast_keeps_moments_and_penalty_in_float32(tokenizer: ConvTokenizer):
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        request = TrainingRequest(RecordedDraws({"posterior": torch.zeros(2, 4, 4, 4)}))
        (reconstruction,) = tokenizer.reconstruct(image, request)
        moments = tokenizer.moments(image)
    exact = tokenizer.moments(image)
    assert moments.dtype == reconstruction.image_BCHW.dtype == reconstruction.penalties["kl"].dtype == torch.float32
    assert (moments - exact).abs().max() < 0.05 * exact.abs().max()


def test_file_errors_name_path_and_difference(tokenizer: ConvTokenizer, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    with pytest.raises(ValueError, match=f"no tokenizer weights at {path}"):
        load_tokenizer(tokenizer, path)
    save_tokenizer(tokenizer, path)
    with pytest.raises(ValueError, match="shape.patch_size is 2 in the file, 1 in the config"):
        load_tokenizer(make_kl(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_tokenizer(tokenizer, path)


@pytest.mark.parametrize("channels", [48, 0])
def test_bad_widths_are_refused(channels: int):
    with pytest.raises(ValueError, match="multiple of 32"):
        make_kl(channels=channels)


@pytest.mark.parametrize(
    "statistics, mean, std",
    [
        ({"scaling_factor": 0.5}, [0.0] * 4, [2.0] * 4),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, [0.25] * 4, [2.0] * 4),
        (
            {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [1.0, 2.0, 3.0, 4.0]},
            [1.0, 2.0, 3.0, 4.0],
            [2.0, 4.0, 6.0, 8.0],
        ),
    ],
)
def test_diffusers_kl_loads_weights_and_statistics(tmp_path, statistics, mean, std):
    torch.manual_seed(0)
    model = AutoencoderKL(**TINY_KL | statistics).eval()
    model.save_pretrained(tmp_path / "vae")
    tokenizer = DiffusersKL(TINY_KL | statistics, source=str(tmp_path), subfolder="vae").eval()
    tokenizer.load_weights()
    assert tokenizer.latent_mean.tolist() == mean
    assert tokenizer.latent_std.tolist() == std
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        reference = model.encode(image).latent_dist
        torch.testing.assert_close(tokenizer.denormalise(tokenizer.encode(image)), reference.mode())
        decoded = tokenizer.decode(tokenizer.encode(image))
        torch.testing.assert_close(decoded, model.decode(reference.mode()).sample.clamp(-1, 1), atol=1e-4, rtol=0)
    assert tokenizer.latent_size((16, 16)) == (8, 8)


def test_diffusers_dc_loads_weights_and_statistics(tmp_path):
    torch.manual_seed(0)
    model = AutoencoderDC(**TINY_DC).eval()
    model.save_pretrained(tmp_path)
    tokenizer = DiffusersDC(TINY_DC, source=str(tmp_path)).eval()
    tokenizer.load_weights()
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latent = tokenizer.encode(image)
        torch.testing.assert_close(latent, model.encode(image).latent * 0.41407)
        assert latent.shape == (2, 8, *tokenizer.latent_size((16, 16)))
        assert tokenizer.decode(latent).shape == image.shape


def test_diffusers_errors(tmp_path, monkeypatch):
    AutoencoderKL(**TINY_KL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layers_per_block is 1 there and 2 here"):
        DiffusersKL(TINY_KL | {"layers_per_block": 2}, source=str(tmp_path)).load_weights()
    with pytest.raises(ValueError, match="no arguments .'colour'."):
        DiffusersKL(TINY_KL | {"colour": 1})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="set tokenizer.source to the folder"):
        DiffusersKL(TINY_KL, source="nobody/no-such-model").load_weights()


def test_diffusers_adapters_build_on_the_meta_device():
    with torch.device("meta"):
        assert DiffusersKL(TINY_KL).latent_mean.is_meta
        assert DiffusersDC(TINY_DC).stride == 4
