import pytest
import torch
import torch.nn.functional as F
from model_fixtures import LatentsAlone

from scalear.pyramid import DirectPyramid, LatentPyramid, join
from scalear.scales import ScaleSchedule

CASES = [
    pytest.param((4, 4), 1, "1,2,4", id="square"),
    pytest.param((4, 8), 1, "1x2,2x4,4x8", id="wide"),
    pytest.param((6, 6), 1, "1,2,4,6", id="sides that do not divide"),
    pytest.param((8, 8), 2, "1,2,4", id="patch 2"),
    pytest.param((12, 8), 2, "1,3x2,6x4", id="patch 2, tall"),
    pytest.param((4, 4), 1, "4", id="one scale"),
]


def build(size, patch_size, scales, kind=LatentPyramid):
    latent_BChw = torch.randn(3, 5, *size, generator=torch.Generator().manual_seed(0))
    pyramid = kind(LatentsAlone(5), patch_size)
    return latent_BChw, pyramid, pyramid.build(latent_BChw, ScaleSchedule.parse(scales))


@pytest.mark.parametrize("kind", [LatentPyramid, DirectPyramid])
@pytest.mark.parametrize("size, patch_size, scales", CASES)
def test_next_context_equals_the_training_context_exactly(size, patch_size, scales, kind):
    _, pyramid, built = build(size, patch_size, scales, kind)
    assert built.contexts[0].shape == (3, 0, 5 * patch_size**2)
    for k in range(1, built.schedule.num_scales):
        context = pyramid.next_context(built.targets[:k], k, built.schedule)
        assert torch.equal(context, built.contexts[k])
        assert context.shape == (3, built.schedule.lengths[k], 5 * patch_size**2)


@pytest.mark.parametrize("size, patch_size, scales", CASES)
def test_targets_are_averages_of_the_latent_and_the_last_is_the_latent(size, patch_size, scales):
    latent, pyramid, built = build(size, patch_size, scales)
    assert torch.equal(pyramid.latent(built.targets, built.schedule), latent)
    for k, (height, width) in enumerate(built.schedule.sizes):
        cells = pyramid.latent(built.targets[: k + 1], built.schedule)
        assert cells.shape[-2:] == (height * patch_size, width * patch_size)
        if size[0] % cells.shape[-2] == 0 and size[1] % cells.shape[-1] == 0:
            factors = size[0] // cells.shape[-2], size[1] // cells.shape[-1]
            torch.testing.assert_close(cells, F.avg_pool2d(latent, factors))
    assert pyramid.content.dim == 5 * patch_size**2
    assert join(built.targets).shape == (3, built.schedule.num_tokens, 5 * patch_size**2)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_direct_context_is_the_scale_before_twice_as_large(patch_size):
    side = 8 * patch_size
    _, pyramid, direct = build((side, side), patch_size, "1,2,4,8", DirectPyramid)
    _, _, through_full = build((side, side), patch_size, "1,2,4,8")
    for k in range(1, 4):
        coarse = pyramid.latent(direct.targets[:k], direct.schedule)
        twice = F.interpolate(coarse, scale_factor=2, mode="bicubic", align_corners=False)
        torch.testing.assert_close(pyramid.latent([direct.contexts[k]], ScaleSchedule.parse([2**k])), twice)
        assert torch.equal(direct.targets[k], through_full.targets[k])
        same = torch.allclose(direct.contexts[k], through_full.contexts[k], atol=1e-3)
        assert same == (k == 3 or (k == 1 and patch_size == 1))  # at the full size, and of a single cell


def test_a_token_is_a_square_of_cells_row_by_row():
    latent = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    target = LatentPyramid(LatentsAlone(2), patch_size=2).build(latent, ScaleSchedule.parse("2")).targets[0]
    square = latent[0, :, 0:2, 2:4]  # token (0, 1)
    assert target[0, 1].tolist() == [square[c, p, q].item() for p in range(2) for q in range(2) for c in range(2)]


def test_half_precision_latents_are_taken_apart_in_float32():
    latent = torch.randn(1, 2, 4, 4).bfloat16()
    built = LatentPyramid(LatentsAlone(2)).build(latent, ScaleSchedule.parse("1,4"))
    assert all(part.dtype == torch.float32 for part in [*built.targets, *built.contexts])


@pytest.mark.parametrize(
    "size, patch_size, scales, message",
    [
        ((4, 4), 1, "1,2", "scales 1,2 end at 2 tokens, but the latent has 4"),
        ((4, 8), 1, "1,4", "the latent has 4x8"),
        ((8, 8), 2, "1,8", "the latent has 4"),
        ((5, 4), 2, "1,2", "patch_size 2 does not divide the 5x4 latent"),
    ],
)
def test_a_latent_that_does_not_fit_is_refused(size, patch_size, scales, message):
    with pytest.raises(ValueError, match=message):
        build(size, patch_size, scales)


def test_a_patch_needs_a_side():
    with pytest.raises(ValueError, match="patch_size must be at least 1, got 0"):
        LatentPyramid(LatentsAlone(), patch_size=0)
