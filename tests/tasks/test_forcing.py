import pytest
import torch
import torch.nn.functional as F
from model_fixtures import LatentsAlone

from scalear.pyramid import CodePyramid
from scalear.scales import ScaleSchedule
from scalear.tasks.forcing import known_codes
from scalear.tokenizers.quantizer import VectorQuantizer

SCHEDULE = ScaleSchedule.parse("1,2,3,4x6,8x12")


def make_pyramid() -> CodePyramid:
    torch.manual_seed(0)
    return CodePyramid(LatentsAlone(4, VectorQuantizer(4, 64)))


LATENT = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))


def test_without_a_mask_all_that_training_would_force_is_forced():
    pyramid = make_pyramid()
    forced = known_codes(pyramid, LATENT, torch.zeros(2, 1, 8, 12), SCHEDULE, 0.5)
    for (codes, keep), target in zip(forced, pyramid.build(LATENT, SCHEDULE).targets, strict=True):
        assert keep.all() and torch.equal(codes, target)


def test_a_cell_is_generated_where_its_averaged_mask_exceeds_the_threshold():
    missing = torch.zeros(2, 1, 8, 12)
    missing[..., :4, :7] = 1  # of the upper left 4x6 all, of the upper right 1/6
    for threshold, upper_right, coarsest in [(0.5, True, True), (0.1, False, False), (0.25, True, False)]:
        forced = known_codes(make_pyramid(), LATENT, missing, SCHEDULE, threshold)
        assert forced[0][1].tolist() == [[coarsest]] * 2  # 28/96 is missing
        assert forced[1][1].tolist() == [[False, upper_right, True, True]] * 2
        assert torch.equal(forced[4][1], missing.flatten(1) == 0)


def test_exactly_the_threshold_is_still_forced():
    missing = torch.zeros(1, 1, 8, 12)
    missing[..., :4, :] = 1
    assert known_codes(make_pyramid(), LATENT[:1], missing, SCHEDULE, 0.5)[0][1].all()


def test_what_is_hidden_does_not_matter():
    pyramid, missing = make_pyramid(), torch.zeros(2, 1, 8, 12)
    missing[..., 1:6, 2:9] = 1
    other = torch.where(missing > 0, 100 * torch.randn(LATENT.shape), LATENT)
    pairs = zip(*(known_codes(pyramid, latent, missing, SCHEDULE, 0.5) for latent in (LATENT, other)), strict=True)
    for (codes, keep), (others, _) in pairs:
        assert torch.equal(codes[keep], others[keep])


def test_finest_known_codes_are_those_of_the_image():
    pyramid, missing = make_pyramid(), torch.rand(2, 1, 8, 12)
    codes, keep = known_codes(pyramid, LATENT, missing, SCHEDULE, 0.5)[-1]
    assert torch.equal(codes, pyramid.quantizer.codes(LATENT))
    assert torch.equal(keep, missing.flatten(1) <= 0.5)


def test_coarse_known_codes_are_those_of_what_is_known_of_the_cell():
    pyramid, missing = make_pyramid(), torch.zeros(2, 1, 8, 12)
    missing[..., :, :4] = 1
    codes, keep = known_codes(pyramid, LATENT, missing, SCHEDULE, 0.5)[0]
    assert keep.all()
    assert torch.equal(codes, pyramid.quantizer.codes(F.adaptive_avg_pool2d(LATENT[..., 4:], 1)))


@pytest.mark.parametrize("finer", ["8x13", "9x12", "16x24"])
def test_scales_finer_than_what_is_given_are_not_forced(finer):
    schedule = ScaleSchedule.parse(f"1,4,8x12,{finer}")
    forced = known_codes(make_pyramid(), LATENT, torch.zeros(2, 1, 8, 12), schedule, 0.5)
    assert forced[-1] is None and all(known is not None for known in forced[:-1])
