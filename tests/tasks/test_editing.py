from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_fixtures import DoublingCodes, randomise, var_transformer_class
from tokenizer_fixtures import make_residual, make_vq

from scalear.draws import SeededDraws
from scalear.guidance import Guidance
from scalear.image_model import ImageModel
from scalear.models.mamba import MambaBlock
from scalear.models.positions import GridPositions, LevelPositions
from scalear.models.token_head import TokenHead
from scalear.pyramid import CodePyramid, ResidualPyramid
from scalear.scales import ScaleSchedule
from scalear.tasks.editing import Editor
from scalear.tasks.forcing import known_codes
from scalear.tasks.pictures import flexible_picture
from scalear.token_sampling import TokenSampling

NUM_CODES, SIDE = 24, 32
LABEL = torch.tensor([0, 2])


def make_tokenizer(make=make_vq, **changes):
    small = {"num_codes": NUM_CODES, "channel_multipliers": (1,), "feature_channels": 256, "patch_size": 4}
    tokenizer = make(**small | changes).eval().requires_grad_(False)
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    return tokenizer


GRID = partial(GridPositions, side=8)


def make_editor(pyramid=CodePyramid, positions=GRID, tokenizer=None, threshold=0.5, **changes) -> Editor:
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(0)
    transformer = var_transformer_class("1,2,4,8", positions=positions, **changes)
    model = ImageModel(tokenizer, pyramid, transformer, TokenHead, TokenSampling(), Guidance(2.0))
    randomise(model.generator, std=0.3)
    return Editor(model.eval(), threshold)


def make_image(height=SIDE, width=SIDE) -> torch.Tensor:
    return torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


def hole(height=SIDE, width=SIDE) -> torch.Tensor:
    mask = torch.zeros(2, 1, height, width)
    mask[..., 8:24, 12:28] = 1
    return mask


def draws(seed=0) -> SeededDraws:
    return SeededDraws([(seed, 0), (seed, 1)])


@pytest.mark.parametrize("block", [{}, partial(MambaBlock, d_state=4)], ids=["attention", "mamba"])
@pytest.mark.parametrize("smooth", [False, True])
def test_forced_tokens_come_out_unchanged_at_every_scale(smooth, block):
    editor = make_editor(block=block)
    latent, mask = editor.tokenizer.encode(make_image()), F.avg_pool2d(hole(), 4)
    schedule = ScaleSchedule.parse("1,3,4x5,8")
    forced = known_codes(editor.model.pyramid, latent, mask, schedule, editor.threshold)
    sampling = TokenSampling(more_smooth=smooth)
    made = editor.model.sample_scales(LABEL, draws(), schedule, forced=forced, sampling=sampling)
    generated = 0
    for content, (codes, keep) in zip(made, forced, strict=True):
        content = content.argmax(-1) if smooth else content
        assert torch.equal(content[keep], codes[keep])
        generated += (content != codes).sum()
    assert generated > 20  # of what is not forced; some codes are hit by chance


def test_kept_pixels_stay_put_and_only_the_hole_depends_on_the_seed():
    editor = make_editor()
    edit, other = (editor.inpaint(make_image(), hole(), LABEL, draws(seed)) for seed in (0, 1))
    assert edit.image_BCHW.shape == (2, 1, SIDE, SIDE) and edit.image_BCHW.abs().max() <= 1
    assert not torch.equal(edit.image_BCHW, other.image_BCHW)
    assert torch.equal(edit.missing_B1HW, hole() > 0) and torch.equal(edit.given_BCHW, make_image())
    again = editor.inpaint(make_image(), hole() > 0, LABEL, draws())
    assert torch.equal(again.image_BCHW, edit.image_BCHW)
    # Convolutions reach over a few tokens: far from the hole, kept pixels are those of the plain reconstruction.
    plain = editor.tokenizer.reconstruction(make_image())
    difference = (edit.image_BCHW - plain).abs()
    assert difference[..., 8:24, 12:28].mean() > 2 * difference[..., :4, :4].mean()
    kept = (hole() == 0).expand_as(plain)
    for image, reference, where, psnr in zip(edit.image_BCHW, plain, kept, edit.psnr_B, strict=True):
        error = (image[where] - reference[where]).square().mean()
        assert psnr.item() == pytest.approx(10 * torch.log10(4 / error).item(), abs=1e-3)


def test_pasting_puts_the_known_pixels_back():
    edit = make_editor().inpaint(make_image(), hole(), LABEL, draws())
    pasted = edit.pasted()
    assert torch.equal(pasted[hole() == 0], make_image()[hole() == 0])
    assert torch.equal(pasted[hole() == 1], edit.image_BCHW[hole() == 1])


def test_outpainting_is_the_mask_of_the_surroundings():
    edit = make_editor().inpaint(make_image(), 1 - hole(), LABEL, draws())
    assert torch.equal(edit.missing_B1HW, hole() == 0) and edit.psnr_B.isfinite().all()


@pytest.mark.parametrize("corner", [(0, 0), (0, 16), (4, 32), (8, 8)])
def test_extension_forces_the_image_anywhere_on_the_canvas(corner):
    editor, size = make_editor(), (40, 64)
    edit = editor.extend(make_image(), LABEL, draws(), size, corner)
    assert edit.image_BCHW.shape == (2, 1, *size)
    top, left = corner
    inside = (..., slice(top, top + SIDE), slice(left, left + SIDE))
    assert torch.equal(edit.given_BCHW[inside], make_image()) and edit.given_BCHW.count_nonzero() == 2 * SIDE * SIDE
    assert not edit.missing_B1HW[inside].any() and edit.missing_B1HW.sum() == 2 * (40 * 64 - SIDE * SIDE)


def watch_forced(editor: Editor, monkeypatch) -> list:
    """What is forced at each scale in a later edit."""
    forced, sample_scales = [], editor.model.sample_scales

    def remember(*args, **how):
        forced.extend(how["forced"])
        return sample_scales(*args, **how)

    monkeypatch.setattr(editor.model, "sample_scales", remember)
    return forced


def test_extension_forces_the_codes_of_the_image_itself(monkeypatch):
    editor = make_editor()
    forced = watch_forced(editor, monkeypatch)
    editor.extend(make_image(), LABEL, draws(), (32, 64), (0, 16))
    codes, keep = forced[-1]
    own = editor.tokenizer.quantizer.codes(editor.tokenizer.encode(make_image())).view(2, 8, 8)
    assert torch.equal(codes.view(2, 8, 16)[..., 4:12], own)
    assert keep.view(2, 8, 16)[..., 4:12].all() and keep.sum() == own.numel()


def test_refinement_forces_the_scales_of_the_small_image():
    editor = make_editor()
    edit = editor.refine(make_image(), LABEL, draws(), (48, 64))
    assert edit.image_BCHW.shape == edit.given_BCHW.shape == (2, 1, 48, 64)
    assert not edit.missing_B1HW.any() and edit.psnr_B.isfinite().all()
    fixed = editor.refine(make_image(), LABEL, draws(), (48, 64), schedule=ScaleSchedule.parse("1,2,4,8,12x16"))
    other = editor.refine(make_image(), LABEL, draws(1), (48, 64), schedule=ScaleSchedule.parse("1,2,4,8,12x16"))
    assert fixed.image_BCHW.shape == (2, 1, 48, 64)
    assert not torch.equal(fixed.image_BCHW, other.image_BCHW)


def test_refinement_forces_averages_of_the_whole_latent_as_in_training(monkeypatch):
    editor, schedule = make_editor(), ScaleSchedule.parse("1,2,4,8,12x16")
    forced = watch_forced(editor, monkeypatch)
    editor.refine(make_image(), LABEL, draws(), (48, 64), schedule=schedule)
    enlarged = F.interpolate(make_image(), (48, 64), mode="bicubic").clamp(-1, 1)
    small = F.interpolate(editor.tokenizer.encode(enlarged), (8, 8), mode="area")
    expected = editor.model.pyramid.build(small, ScaleSchedule.parse("1,2,4,8")).targets
    assert len(forced) == 5 and forced[4] is None
    assert all(torch.equal(codes, target) for (codes, _), target in zip(forced[:4], expected, strict=True))


def test_pictures_are_refused_before_the_first_row_is_sampled(monkeypatch):
    editor = make_editor(pyramid=DoublingCodes)
    monkeypatch.setattr(editor.model, "sample", lambda *args: pytest.fail("sampled"))
    with pytest.raises(ValueError, match="scales must double, got"):
        flexible_picture(editor, LABEL)


def test_masks_also_serve_extension_and_refinement():
    editor = make_editor()
    extended = editor.extend(make_image(), LABEL, draws(), (32, 64), (0, 0), hole())
    assert torch.equal(extended.missing_B1HW[..., :SIDE], hole() > 0) and extended.missing_B1HW[..., SIDE:].all()
    refined = editor.refine(make_image(), LABEL, draws(), (64, 64), hole())
    assert torch.equal(refined.missing_B1HW, F.interpolate(hole(), (64, 64)) > 0)


@pytest.mark.parametrize(
    "size, scales",
    [((8, 8), "1,2,4,8"), ((4, 8), "1,1x2,2x4,4x8"), ((2, 2), "1,2"), ((16, 8), "1,3x2,7x4,16x8")],
)
def test_by_default_as_many_scales_as_the_generator_was_built_for(size, scales):
    assert str(make_editor().schedule(size)) == scales


def test_images_of_other_sizes_are_edited_as_well():
    mask = torch.zeros(2, 1, 16, 48)
    mask[..., 16:32] = 1
    assert make_editor().inpaint(make_image(16, 48), mask, LABEL, draws()).image_BCHW.shape == (2, 1, 16, 48)


IMPOSSIBLE = [
    ({"mask_B1HW": torch.ones(2, 1, 32, 28)}, "the mask is 32x28, the image 32x32"),
    ({"mask_B1HW": torch.zeros(2, 1, SIDE, SIDE)}, "nothing to make up: the mask is empty"),
    ({"mask_B1HW": F.pad(torch.ones(2, 1, 1, 1), (0, 31, 0, 31))}, "covers no token .4x4 pixels. by more than 50%"),
    ({"mask_B1HW": torch.ones(2, 1, SIDE, SIDE)}, "nothing to keep: the mask is full"),
    ({"label_B": torch.tensor([0, 4])}, "label 4 is out of range: the model knows classes 0..2"),
    ({"label_B": torch.tensor([-1, 0])}, "label -1 is out of range"),
    ({"schedule": ScaleSchedule.parse("1,2,4")}, "1,2,4 end at 4 tokens, but the latent has 8"),
    (
        {"image_BCHW": make_image(30, 32), "mask_B1HW": hole(30, 32)},
        "30x32 is not a multiple of .* 4: take 32x32",
    ),
    ({"image_BCHW": make_image().expand(2, 3, 32, 32)}, r"the image has 3 channel\(s\), the tokenizer is for 1"),
]


@pytest.mark.parametrize("changes, message", IMPOSSIBLE)
def test_impossible_edits_are_refused_before_any_work(changes, message):
    editor = make_editor()
    editor.tokenizer.encoder = None  # whoever begins to work fails otherwise
    arguments = {"image_BCHW": make_image(), "mask_B1HW": hole(), "label_B": LABEL, "draws": draws()} | changes
    with pytest.raises(ValueError, match=message):
        editor.inpaint(**arguments)


def test_impossible_canvases_are_refused():
    editor, image = make_editor(), make_image()
    for size, corner, message in [
        ((32, 48), (0, 20), "32x32 with its corner at 0,20 does not lie on a canvas of 32x48"),
        ((32, 64), (0, -4), "does not lie on a canvas"),
        ((32, 64), (0, 6), "the corner 0,6 is not a multiple of the tokenizer's stride 4"),
        ((32, 62), (0, 0), "32x62 is not a multiple of the tokenizer's stride 4"),
        ((32, 32), (0, 0), "nothing to make up"),
    ]:
        with pytest.raises(ValueError, match=message):
            editor.extend(image, LABEL, draws(), size, corner)
    for size in [(32, 32), (64, 16), (16, 16)]:
        with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} is not larger than 32x32"):
            editor.refine(image, LABEL, draws(), size)


def test_other_generators_are_refused():
    residual = make_tokenizer(make_residual, scales="1,2,4,8")
    with pytest.raises(ValueError, match="this one has a ResidualPyramid: use a FlexVAR config and checkpoint"):
        make_editor(ResidualPyramid, LevelPositions, residual)
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        make_editor(threshold=1.0)
    fixed = make_editor(positions=LevelPositions)
    with pytest.raises(ValueError, match="cannot do 1,2,4x8"):
        fixed.extend(make_image(16, 16), LABEL, draws(), (16, 32), (0, 0), schedule=ScaleSchedule.parse("1,2,4x8"))
