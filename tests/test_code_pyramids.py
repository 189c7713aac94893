import pytest
import torch
import torch.nn.functional as F
from model_fixtures import LatentsAlone
from tokenizer_fixtures import make_kl, make_residual, make_vq

from scalear.pyramid import CodePyramid, Content, ForcedCodePyramid, ResidualPyramid
from scalear.scales import ScaleSchedule
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer

CHANNELS, NUM_CODES = 4, 16
SCHEDULES = ["1,2,4", "1,3,5,8", "1x2,2x3,4x8", "1,4x2,6x4", "4", "1,2,3,4,5,6,7,8"]


def build(make, quantizer, scales):
    schedule = ScaleSchedule.parse(scales)
    latent = torch.randn(3, CHANNELS, *schedule.sizes[-1], generator=torch.Generator().manual_seed(1))
    pyramid = make(LatentsAlone(CHANNELS, quantizer.requires_grad_(False)))
    return latent, pyramid, pyramid.build(latent, schedule)


def flexvar(scales):
    torch.manual_seed(0)
    return build(CodePyramid, VectorQuantizer(CHANNELS, NUM_CODES), scales)


def var(scales, pyramid=ResidualPyramid):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(CHANNELS, NUM_CODES, scales, num_phis=2)
    torch.nn.init.normal_(quantizer.codebook, std=0.5)
    return build(pyramid, quantizer, scales)


def forced(scales):
    return var(scales, ForcedCodePyramid)


@pytest.mark.parametrize("make", [flexvar, var, forced])
@pytest.mark.parametrize("scales", SCHEDULES)
def test_next_context_equals_the_training_context_exactly(make, scales):
    _, pyramid, built = make(scales)
    assert pyramid.content == Content(CHANNELS, NUM_CODES)
    assert built.contexts[0].shape == (3, 0, CHANNELS)
    for k, length in enumerate(built.schedule.lengths):
        assert built.targets[k].shape == (3, length) and built.targets[k].dtype == torch.int64
        if k:
            assert torch.equal(pyramid.next_context(built.targets[:k], k, built.schedule), built.contexts[k])
            assert built.contexts[k].shape == (3, length, CHANNELS) and built.contexts[k].dtype == torch.float32


@pytest.mark.parametrize("make", [flexvar, var])
def test_certain_weights_of_codes_are_codes(make):
    _, pyramid, built = make("1,2x3,4x6")
    weights = [F.one_hot(codes, NUM_CODES).float() for codes in built.targets]
    for k in (1, 2):
        context = pyramid.next_context(weights[:k], k, built.schedule)
        torch.testing.assert_close(context, built.contexts[k])
    torch.testing.assert_close(pyramid.latent(weights, built.schedule), pyramid.latent(built.targets, built.schedule))


@pytest.mark.parametrize("make", [flexvar, forced])
@pytest.mark.parametrize("scales", SCHEDULES)
def test_flexvar_scales_are_codes_of_averages_and_do_not_know_of_each_other(scales, make):
    latent, pyramid, built = make(scales)
    for k, size in enumerate(built.schedule.sizes):
        codes = pyramid.quantizer.codes(F.interpolate(latent, size, mode="area"))
        assert torch.equal(built.targets[k], codes)
        assert torch.equal(built.targets[k], pyramid.build(latent, built.schedule.scale(k)).targets[0])
        assert torch.equal(pyramid.latent(built.targets[: k + 1], built.schedule), pyramid.quantizer.embed(codes, size))


def test_flexvar_contexts_are_the_vectors_of_the_coarser_scale_resized():
    _, pyramid, built = flexvar("1,2x3,4x6")
    coarse = pyramid.quantizer.vectors[built.targets[1]].mT.reshape(3, CHANNELS, 2, 3)
    fine = F.interpolate(coarse, (4, 6), mode="bicubic")
    torch.testing.assert_close(built.contexts[2], fine.flatten(2).mT)


def test_a_flexvar_list_may_end_elsewhere_but_is_not_trained_on_unasked():
    latent, pyramid, built = flexvar("1,4,8")
    shorter = pyramid.build(latent, ScaleSchedule.parse("1,4,6"))
    assert torch.equal(shorter.targets[1], built.targets[1]) and shorter.targets[2].shape == (3, 36)
    above = pyramid.build(latent, ScaleSchedule.parse("1,16"))  # as the official code does it: cells are repeated
    assert torch.equal(above.targets[1].view(3, 16, 16)[:, ::2, ::2].flatten(1), built.targets[2])
    with pytest.raises(ValueError, match="1,9 end at 9 tokens, but the latent has only 8x8"):
        pyramid.check(ScaleSchedule.parse("1,9"), (8, 8))
    with pytest.raises(ValueError, match="1,4,6 end at 6 tokens, but the latent has 8"):
        pyramid.check(ScaleSchedule.parse("1,4,6"), (8, 8))
    with pytest.raises(ValueError, match="the latent has only 2x4"):
        pyramid.check(ScaleSchedule.parse("1,4"), (2, 4))
    below = CodePyramid(LatentsAlone(CHANNELS, pyramid.quantizer), below=True)
    below.check(ScaleSchedule.parse("1,4,6"), (8, 8))


@pytest.mark.parametrize("scales", SCHEDULES)
def test_residual_scales_sum_to_f_hat(scales):
    latent, pyramid, built = var(scales)
    f_hat, size = torch.zeros_like(latent), latent.shape[-2:]
    for k, codes in enumerate(built.targets):
        vectors = pyramid.quantizer.embed(codes, built.schedule.sizes[k])
        enlarged = F.interpolate(vectors, size, mode="bicubic")
        f_hat = f_hat + pyramid.quantizer.phi(k, built.schedule.num_scales, enlarged)
        torch.testing.assert_close(pyramid.latent(built.targets[: k + 1], built.schedule), f_hat)
        if k + 1 < built.schedule.num_scales:
            context = F.interpolate(f_hat, built.schedule.sizes[k + 1], mode="area")
            torch.testing.assert_close(built.contexts[k + 1], context.flatten(2).mT)


def test_residual_scales_end_at_the_latent_as_the_quantizer_has_it():
    latent, pyramid, built = var("1,2,4")
    assert torch.equal(pyramid.latent(built.targets, built.schedule), pyramid.quantizer.quantize(latent))
    with pytest.raises(ValueError, match="scales 1,2 end at 2 tokens, but the latent has 4"):
        pyramid.build(latent, ScaleSchedule.parse("1,2"))


def test_a_pyramid_of_codes_needs_its_quantizer():
    with pytest.raises(ValueError, match="CodePyramid needs .* has no codebook: take a tokenizer with VectorQuantizer"):
        CodePyramid(make_kl())
    with pytest.raises(ValueError, match="ForcedCodePyramid needs .* has no codebook"):
        ForcedCodePyramid(make_kl())
    with pytest.raises(ValueError, match="ResidualPyramid needs .* has a VectorQuantizer: take .* ResidualQuantizer"):
        ResidualPyramid(make_vq())


def test_residual_codes_do_not_pass_for_codes_of_every_scale():
    """They can be looked up alike, but a scale of corrections decodes to nothing by itself."""
    with pytest.raises(ValueError, match="CodePyramid needs .* has a ResidualQuantizer: take .* VectorQuantizer, or"):
        CodePyramid(make_residual())
