"""Image models: around latents of other shapes than 16x16x16, and with and without fast ways."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_fixtures import (
    DoublingCodes,
    LatentsAlone,
    make_code_model,
    make_model,
    network_class,
    randomise,
    seeded,
    transformer_class,
)
from tokenizer_fixtures import TINY_DC, TINY_KL, make_kl

from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.image_model import ImageModel
from scalear.models.flow_head import FlowHead
from scalear.pyramid import CodePyramid, ImagePyramid, LatentPyramid
from scalear.scales import ScaleSchedule
from scalear.tokenizers.diffusers_adapters import DiffusersDC, DiffusersKL

MAKE = {
    "flowar": make_model,
    "flowar-cross": partial(make_model, cross_attention=True),
    "var": partial(make_code_model, "var"),
    "flexvar": partial(make_code_model, "flexvar"),
}


def sd_vae() -> DiffusersKL:
    return DiffusersKL(TINY_KL)


def dc_ae() -> DiffusersDC:
    return DiffusersDC(TINY_DC | {"scaling_factor": 0.3})


@pytest.mark.parametrize(
    ("make_tokenizer", "patch_size", "scales", "image_size"),
    [
        (sd_vae, 2, "1,2,4", (16, 16)),  # 8x8 cells of 4 channels, 4x4 tokens of 16
        (dc_ae, 1, "1,2,4", (16, 16)),  # 4x4 cells of 8 channels, as many tokens
        (sd_vae, 2, "1,2,2x4", (8, 16)),
    ],
)
def test_trains_on_and_generates_the_latents_of_a_diffusers_autoencoder(make_tokenizer, patch_size, scales, image_size):
    """SD-VAE's have many cells of few channels, DC-AE's few cells of many."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer().eval()
    pyramid, head = partial(LatentPyramid, patch_size=patch_size), partial(FlowHead, network=network_class(depth=1))
    how = FlowSolver(num_steps=2), Guidance(2.0)
    model = ImageModel(tokenizer, pyramid, transformer_class(scales), head, *how)
    assert model.image_size() == image_size and model.latent_size() == tokenizer.latent_size(image_size)

    channels, size = tokenizer.latent_channels, model.latent_size()
    image, draws = torch.rand(2, 3, *image_size) * 2 - 1, seeded(2)
    with torch.no_grad():
        latent = tokenizer.latent(tokenizer.moments(image), draws.normal("posterior", channels, *size))
    assert latent.shape == (2, channels, *size)
    loss = model.loss(latent, torch.tensor([0, 2]), draws)
    loss.total.backward()
    assert loss.per_scale["loss"].shape == (model.schedule.num_scales,)
    assert model.generator.head.network.output_proj.weight.grad.abs().sum() > 0

    labels = torch.tensor([1, 2])
    sampled = model.eval().sample_latent(labels, seeded(2))
    assert sampled.shape == latent.shape
    with torch.no_grad():
        images = model.sample(labels, seeded(2))
        assert images.shape == image.shape and torch.equal(images, tokenizer.decode(sampled))


@pytest.mark.parametrize("scales, patch_size", [("1,2,4", 1), ("1,2", 2)])
def test_scales_may_be_the_latents_of_smaller_images(scales, patch_size):
    torch.manual_seed(0)
    pyramid, tokenizer = partial(ImagePyramid, patch_size=patch_size), make_kl().eval()
    head = partial(FlowHead, network=network_class(depth=1))
    model = ImageModel(tokenizer, pyramid, transformer_class(scales), head, FlowSolver(num_steps=2), Guidance(2.0))
    image, label, draws = torch.rand(2, 1, 8, 8) * 2 - 1, torch.tensor([0, 2]), seeded(2)
    mode, sample = model.latent(image, cached=False), model.latent(image, cached=False, draws=draws)
    assert mode.shape == sample.shape and not torch.allclose(mode, sample)
    built = model.pyramid.build(mode, model.schedule)
    for k, (height, width) in enumerate(model.schedule.sizes):
        factor = 4 // (height * patch_size)
        with torch.no_grad():
            encoded = tokenizer.encode(F.avg_pool2d(image, factor))
        assert encoded.shape[-2:] == (height * patch_size, width * patch_size)
        torch.testing.assert_close(model.pyramid.latent(built.targets[: k + 1], model.schedule), encoded)
        if k:
            assert torch.equal(model.pyramid.next_context(built.targets[:k], k, model.schedule), built.contexts[k])
    model.loss(sample, label, draws).total.backward()
    assert model.generator.head.network.output_proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert model.sample(label, seeded(2)).shape == image.shape
    with pytest.raises(ValueError, match="makes scales .* of images, and cannot of a latent of 4x4 cells: set data"):
        model.loss(LatentPyramid(tokenizer).latent([torch.zeros(2, 16, 4)], ScaleSchedule.parse("4")), label, draws)


@pytest.mark.parametrize("kind", MAKE)
def test_fast_models_have_the_loss_the_samples_and_the_names_of_plain_ones(kind):
    fast, plain = MAKE[kind](), MAKE[kind](fast=False)
    for model in (fast, plain):
        randomise(model.generator, std=0.3)
    assert any("forward" in vars(module) for module in fast.modules())
    assert not any("forward" in vars(module) for module in plain.modules())
    assert list(fast.state_dict()) == list(plain.state_dict())
    latent, label = torch.randn(3, 4, 4, 4), torch.tensor([0, 2, 1])
    losses = [model.loss(latent, label, seeded(3)).total for model in (fast, plain)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    how = {"guidance": Guidance(2.0)}
    for one, other in zip(
        *(model.eval().sample_scales(label, seeded(3), **how) for model in (fast, plain)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_model_samples_as_it_is_set_unless_asked_otherwise():
    model = randomise(make_model(sampling=FlowSolver(num_steps=3), guidance=Guidance(3.0))).eval()
    label, default = torch.tensor([0, 2]), model.sample_latent(torch.tensor([0, 2]), seeded(2))
    for how in ({"sampling": FlowSolver(num_steps=2)}, {"guidance": Guidance()}):
        other = randomise(make_model(**{"sampling": model.sampling, "guidance": model.guidance} | how)).eval()
        sample = model.sample_latent(label, seeded(2), **how)
        assert torch.equal(sample, other.sample_latent(label, seeded(2))) and not torch.equal(sample, default)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_weights_compute_in_their_own(dtype):
    model = make_model().to(dtype)
    for precision in ("32-true", "bf16-mixed"):
        with model.autocast(precision):
            found = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        assert found == (torch.bfloat16 if dtype == torch.bfloat16 or precision == "bf16-mixed" else torch.float32)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="CodePyramid needs .* VectorQuantizer, but this one has no codebook"):
        ImageModel(LatentsAlone(), CodePyramid, transformer_class(), FlowHead, FlowSolver(), Guidance())
    with pytest.raises(ValueError, match="scales 1,2,4 end at 4 tokens, but the latent has 8"):
        make_model().loss(torch.zeros(1, 4, 8, 8), torch.tensor([0]), seeded(1))


def test_latents_are_modes_or_samples_of_images_or_of_cached_moments():
    head = partial(FlowHead, network=network_class())
    model = ImageModel(sd_vae().eval(), LatentPyramid, transformer_class("1,8"), head, FlowSolver(), Guidance())
    image, tokenizer = torch.rand(2, 3, 16, 16) * 2 - 1, model.tokenizer
    mode = model.latent(image, cached=False)
    assert torch.equal(mode, tokenizer.encode(image)) and not mode.requires_grad
    sample = model.latent(image, False, seeded(2))
    noise = seeded(2).normal("posterior", 4, 8, 8)
    assert torch.equal(sample, tokenizer.latent(tokenizer.moments(image), noise)) and not torch.equal(sample, mode)
    cached = tokenizer.moments(image).half()
    assert torch.equal(model.latent(cached, True), tokenizer.latent(cached.float()))
    codes = make_code_model("flexvar")  # have no posterior
    latent = torch.randn(2, 4, 4, 4)
    assert torch.equal(codes.latent(latent, True, seeded(2)), latent)


@pytest.mark.parametrize("kind", MAKE)
def test_scales_become_an_image_whose_pixels_are_larger_while_fine_ones_are_missing(kind):
    model = MAKE[kind]()
    targets = model.pyramid.build(torch.randn(2, 4, 4, 4), model.schedule).targets
    for k in range(len(targets)):
        latent = model.pyramid.latent(targets[: k + 1], model.schedule)
        times = 4 // latent.shape[-1]  # VAR's latents have their full size from the first scale on
        enlarged = latent.repeat_interleave(times, dim=-1).repeat_interleave(times, dim=-2)
        assert torch.equal(model.image(targets[: k + 1]), model.tokenizer.decode(enlarged))


def test_scales_that_a_part_does_not_serve_are_refused_before_anything_is_sampled():
    model, label = make_code_model("flexvar"), torch.tensor([0])
    model.pyramid = DoublingCodes(model.tokenizer)
    assert model.sample(label, seeded(1), ScaleSchedule.parse("1,2,4,8")).shape == (1, 4, 8, 8)
    for ask in (model.sample_scales, model.sample_latent, model.sample):  # the first without asking for a scale
        with pytest.raises(ValueError, match="scales must double, got 1,3,4"):
            ask(label, seeded(1), ScaleSchedule.parse("1,3,4"))
    with pytest.raises(ValueError, match="cannot do 1,3,4"):
        make_code_model("var").sample_scales(label, seeded(1), ScaleSchedule.parse("1,3,4"))
