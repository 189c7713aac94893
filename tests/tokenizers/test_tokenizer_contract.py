"""What everything else may ask of a tokenizer, of every class and every bottleneck."""

import json
from functools import partial
from itertools import chain

import pytest
import torch
from safetensors import safe_open
from tokenizer_fixtures import TINY_DC, TINY_KL, make_kl, make_residual, make_vq
from torch import Tensor

from scalear.draws import SeededDraws
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.bottleneck import Bottleneck, Passage, TrainingRequest
from scalear.tokenizers.conv import ConvShape
from scalear.tokenizers.diffusers_adapters import DiffusersDC, DiffusersKL
from scalear.tokenizers.weights import architecture, load_tokenizer, open_tokenizer, save_tokenizer

CONVOLUTIONAL = {"kl": make_kl, "vq": make_vq, "residual": partial(make_residual, scales="1,2,8x4")}
ADAPTERS = {"diffusers kl": partial(DiffusersKL, TINY_KL), "dc": partial(DiffusersDC, TINY_DC)}
ALL = CONVOLUTIONAL | ADAPTERS
SIZE = (16, 8)


def image_of(tokenizer: Tokenizer) -> Tensor:
    return torch.rand(2, tokenizer.image_channels, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("kind", ALL)
def test_there_and_back(kind):
    tokenizer = ALL[kind]().eval()
    tokenizer.latent_mean.fill_(0.5 if tokenizer.quantizer is None else 0.0)
    image, size = image_of(tokenizer), tokenizer.latent_size(SIZE)
    with torch.no_grad():
        moments = tokenizer.moments(image)
        latent = tokenizer.latent(moments)
        noisy = tokenizer.latent(moments, torch.ones_like(latent))
        assert torch.equal(tokenizer.encode(image), latent)
        decoded, reconstruction = tokenizer.decode(latent), tokenizer.reconstruction(image)
    assert moments.dtype == torch.float32 and moments.shape[2:] == size
    assert latent.shape == noisy.shape == (2, tokenizer.latent_channels, *size)
    assert torch.equal(noisy, latent) == (kind in ("vq", "residual", "dc"))  # those without a posterior
    assert decoded.shape == reconstruction.shape == image.shape and decoded.abs().max() <= 1
    assert torch.equal(decoded, reconstruction) == (tokenizer.quantizer is None)
    assert tokenizer.moments_dtype == (torch.float16 if tokenizer.quantizer is None else torch.float32)


@pytest.mark.parametrize(
    "kind, num_codes, schedule, scales_freely",
    [
        ("kl", None, "None", False),
        ("vq", 16, "None", True),
        ("residual", 16, "1,2,8x4", False),
        ("diffusers kl", None, "None", False),
        ("dc", None, "None", False),
    ],
)
def test_what_it_is_of_codes_and_scales(kind, num_codes, schedule, scales_freely):
    tokenizer = ALL[kind]()
    assert (tokenizer.num_codes, str(tokenizer.schedule)) == (num_codes, schedule)
    assert tokenizer.scales_freely == scales_freely
    assert (tokenizer.quantizer is None) == (num_codes is None)


def test_whether_it_reads_weights_and_where_that_stands():
    for kind, make in ALL.items():
        argument = "weights" if kind in CONVOLUTIONAL else "source"
        assert not make().has_weights and make(**{argument: "somewhere"}).has_weights
        assert argument in make().weight_arguments
        assert not make().weight_arguments & architecture(make()).keys()
    assert not DiffusersKL(TINY_KL, subfolder="vae").has_weights


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_the_file_of_a_trained_tokenizer_says_all_that_it_is_built_from(kind, tmp_path):
    tokenizer = CONVOLUTIONAL[kind](patch_size=2, pixel_channels=4)
    tokenizer.latent_mean.normal_()
    path = tmp_path / "run" / "tokenizer.safetensors"
    save_tokenizer(tokenizer, path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    opened, configured = open_tokenizer(path), CONVOLUTIONAL[kind](patch_size=2, pixel_channels=4, weights=str(path))
    assert configured.fingerprint() != tokenizer.fingerprint()
    configured.load_weights()
    assert configured.fingerprint() == tokenizer.fingerprint()
    assert opened.title == tokenizer.title and architecture(opened) == architecture(tokenizer)
    assert opened.fingerprint() == tokenizer.fingerprint()
    with safe_open(path, "pt") as file:
        init_args = json.loads(file.metadata()["init_args"])
    assert init_args["shape"]["patch_size"] == 2 and init_args["bottleneck"]["init_args"]["latent_channels"] == 4


def test_another_bottleneck_is_named_as_one_difference(tmp_path):
    save_tokenizer(make_vq(), tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="than the config: bottleneck.class_path is .*Vector.*Residual[^;]*$"):
        load_tokenizer(make_residual(), tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="than the config: class_path is .*ConvTokenizer.*DiffusersKL[^;]*$"):
        load_tokenizer(DiffusersKL(TINY_KL), tmp_path / "t.safetensors")


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_a_pass_of_training(kind):
    tokenizer = CONVOLUTIONAL[kind]()
    image, sizes = image_of(tokenizer), [(1, 1), (3, 2)] if tokenizer.scales_freely else []
    request = TrainingRequest(SeededDraws([(0, 0), (0, 1)]), sizes, tokenizer.penalties)
    passages, reconstructions = tokenizer.passages(image, request), tokenizer.reconstruct(image, request)
    assert len(passages) == len(reconstructions) == 1 + len(sizes)
    assert reconstructions[0].target_BCHW is image
    for passage, reconstruction in zip(passages, reconstructions, strict=True):
        assert reconstruction.image_BCHW.shape == reconstruction.target_BCHW.shape
        assert passage.penalties.keys() == reconstruction.penalties.keys() == tokenizer.penalties
        assert (passage.quantized is None) == (tokenizer.quantizer is None)
        if passage.quantized:
            for codes, vectors in zip(passage.quantized.codes, passage.quantized.vectors, strict=True):
                assert codes.shape == vectors.shape[:2] and not vectors.requires_grad
                assert torch.equal(tokenizer.quantizer.nearest(vectors), codes)
    assert (tokenizer.posterior(image) is None) == (tokenizer.quantizer is not None)
    loss = sum(chain(*(r.penalties.values() for r in reconstructions))).mean()
    (loss + sum(r.image_BCHW.mean() for r in reconstructions)).backward()
    tokenizer.check_gradients()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


def test_phis_that_no_scale_uses_are_refused_where_all_must_have_gradients():
    with pytest.raises(ValueError, match="3 scales use 3 of 8 phis.*tokenizer.bottleneck.num_phis to 1 or 3"):
        make_residual(num_phis=8).check_gradients()
    make_residual(num_phis=8, phi_ratio=0.0).check_gradients()


class Tanh(Bottleneck):
    """As small as a bottleneck can be: latents within (-scale, scale)."""

    penalties = frozenset()

    def __init__(self, latent_channels: int, scale: float = 2.0) -> None:
        super().__init__(latent_channels, latent_channels, torch.float16)
        self.scale = scale

    def latent(self, moments_BMhw: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        return self.scale * moments_BMhw.tanh()

    def forward(self, moments_BMhw: Tensor, request: TrainingRequest, num_elements: int) -> list[Passage]:
        return [Passage(self.latent(moments_BMhw), {})]


def test_a_bottleneck_of_a_users_own(tmp_path):
    tokenizer = ConvTokenizer(ConvShape(32, (1,), 1, patch_size=4), Tanh(3), image_channels=1)
    image = image_of(tokenizer)
    assert tokenizer.title == "ConvTokenizer with Tanh" and tokenizer.quantizer is None
    (reconstruction,) = tokenizer.reconstruct(image, TrainingRequest(SeededDraws([(0, 0), (0, 1)])))
    torch.testing.assert_close(reconstruction.image_BCHW, tokenizer.reconstruction(image))
    save_tokenizer(tokenizer, tmp_path / "t.safetensors")
    assert open_tokenizer(tmp_path / "t.safetensors").fingerprint() == tokenizer.fingerprint()
    with pytest.raises(ValueError, match="bottleneck.scale is 2.0 in the file, 1.0 in the config"):
        other = ConvTokenizer(tokenizer.shape, Tanh(3, 1.0), image_channels=1)
        load_tokenizer(other, tmp_path / "t.safetensors")
