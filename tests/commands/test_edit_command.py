"""Editing through the real command line."""

import numpy as np
import pytest
from cli_fixtures import run
from code_fixtures import CodeRun, train_flexvar, train_var
from PIL import Image

from scalear.tasks.edit_requests import parse_place, parse_size, read_image

SIDE = 32


@pytest.fixture(scope="module")
def flexvar(images, tmp_path_factory) -> CodeRun:
    return train_flexvar(tmp_path_factory.mktemp("flexvar"), images)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An image and masks of all kinds."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    hole = np.zeros((SIDE, SIDE), np.uint8)
    hole[8:24, 8:24] = 255
    pictures = {
        "image": pixels,
        "colour": np.stack([pixels] * 3, axis=-1),
        "odd": pixels[:30],
        "hole": hole,
        "around": 255 - hole,
        "small": hole[:16, :16],
        "empty": np.zeros_like(hole),
        "full": np.full_like(hole, 255),
    }
    for name, array in pictures.items():
        Image.fromarray(array).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def load(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def edit(files, model: CodeRun, what: str, *options: str, image: str = "image", out: str = "out") -> int:
    places = [f"--image={files / image}.png", f"--out={files / out}.png", "--force"]
    return run("edit", what, *places, "--label=1", *model.model, *[option.format(files=files) for option in options])


@pytest.mark.parametrize(
    "what, options, shape",
    [
        ("inpaint", ["--mask={files}/hole.png"], (32, 32)),
        ("inpaint", ["--mask={files}/hole.png", "--scales=1,3,5,8", "--threshold=0.2", "--seed=3"], (32, 32)),
        ("outpaint", ["--mask={files}/around.png", "--model.guidance.weight=1"], (32, 32)),
        ("refine", [], (64, 64)),
        ("refine", ["--size=48x64", "--scales=1,2,4,8,12x16", "--mask={files}/hole.png"], (48, 64)),
        ("extend", ["--size=32x64"], (32, 64)),
        ("extend", ["--size=64x36", "--place=32,4", "--paste"], (64, 36)),
    ],
)
def test_an_edit_leaves_the_result_and_a_sheet_and_says_what_was_kept(flexvar, files, capsys, what, options, shape):
    assert edit(files, flexvar, what, *options) == 0
    printed = capsys.readouterr().out
    assert "kept region: PSNR" in printed and "dB against plain reconstruction (nothing pasted)" in printed
    assert load(files / "out.png").shape == shape
    scale = 128 // shape[0]
    assert load(files / "out-sheet.png").shape == ((shape[0] + 4) * scale, (3 * (shape[1] + 2) + 2) * scale)


def test_pasting_is_an_option_and_results_repeat(flexvar, files):
    for out, *options in (("one",), ("same",), ("other", "--seed=1"), ("pasted", "--paste")):
        assert edit(files, flexvar, "inpaint", "--mask={files}/hole.png", *options, out=out) == 0
    one, same, other, pasted = (load(files / f"{out}.png") for out in ("one", "same", "other", "pasted"))
    kept = load(files / "hole.png") == 0
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(pasted[kept], load(files / "image.png")[kept]) and np.array_equal(pasted[~kept], one[~kept])
    assert not np.array_equal(one[kept], pasted[kept])


def test_colour_images_become_grey_where_the_tokenizer_is(flexvar, files):
    assert edit(files, flexvar, "inpaint", "--mask={files}/hole.png") == 0
    grey = load(files / "out.png")
    assert edit(files, flexvar, "inpaint", "--mask={files}/hole.png", image="colour") == 0
    assert np.array_equal(load(files / "out.png"), grey)


def test_an_extension_keeps_the_image_where_it_was_put(flexvar, files):
    assert edit(files, flexvar, "extend", "--size=48x64", "--place=bottom", "--paste") == 0
    assert np.array_equal(load(files / "out.png")[16:, 16:48], load(files / "image.png"))


@pytest.mark.parametrize(
    "place, corner",
    [
        ("center", (8, 16)),
        ("left", (8, 0)),
        ("right", (8, 40)),
        ("top", (0, 16)),
        ("bottom", (20, 16)),
        ("4,8", (4, 8)),
    ],
)
def test_places_lie_between_tokens(place, corner):
    assert parse_place(place, free=(20, 40), stride=8) == corner


@pytest.mark.parametrize(
    "what, image, options, messages",
    [
        ("inpaint", "image", ["--mask={files}/small.png"], ["the mask is 16x16, the image 32x32"]),
        ("inpaint", "image", ["--mask={files}/empty.png"], ["nothing to make up: the mask is empty", "white"]),
        ("outpaint", "image", ["--mask={files}/full.png"], ["nothing to keep: the mask is full", "black"]),
        ("inpaint", "image", [], ["error: these arguments are missing: mask\n"]),
        ("inpaint", "image", ["--mask={files}/hole.png", "--seed=x"], ["error: seed must be int, got x"]),
        ("inpaint", "image", ["--mask={files}/hole.png", "--ckpt_path=null"], ["trained weights: give --ckpt_path"]),
        ("inpaint", "absent", ["--mask={files}/hole.png"], ["there is no image", "absent.png"]),
        ("inpaint", "image", ["--mask={files}/hole.png", "--label=4"], ["label 4 is out of range", "classes 0..2"]),
        ("inpaint", "image", ["--mask={files}/hole.png", "--scales=1,2,4"], ["1,2,4 end at 4 tokens", "has 8"]),
        ("inpaint", "image", ["--mask={files}/hole.png", "--scales=1,4,2,8"], ["scale 2 follows 4", "sort the list"]),
        ("inpaint", "image", ["--mask={files}/hole.png", "--out=out.jpg"], ["--out out.jpg must end in .png"]),
        ("refine", "odd", [], ["30x32 is not a multiple of the tokenizer's stride 4"]),
        ("extend", "image", ["--size=32x50"], ["32x50 is not a multiple of the tokenizer's stride 4"]),
        (
            "inpaint",
            "image",
            ["--mask={files}/hole.png", "--model.transformer.dim=64"],
            ["is a checkpoint of another model than this config describes"],
        ),
    ],
)
def test_an_impossible_edit_ends_in_one_message(flexvar, files, capsys, what, image, options, messages):
    assert edit(files, flexvar, what, *options, image=image, out="refused") == 2
    error = capsys.readouterr().err
    assert all(part in error for part in messages), error
    assert error.count("scalear: error:") == 1 and "Traceback" not in error and len(error) < 1200
    assert not (files / "refused.png").exists()


def test_fixed_scales_cannot_be_edited_or_changed(images, files, tmp_path, capsys):
    var = train_var(tmp_path, images)
    assert edit(files, var, "inpaint", "--mask={files}/hole.png") == 2
    assert "this one has a ResidualPyramid: use a FlexVAR config and checkpoint" in capsys.readouterr().err
    checkpoint = f"--ckpt_path={var.folder / 'checkpoints/last.ckpt'}"
    assert run("predict", "-c", var.folder / "config.yaml", checkpoint, "--model.samples.scales=1,2,8") == 2
    error = capsys.readouterr().err
    assert "learned positions for scales 1,2,4,8 and cannot do 1,2,8" in error and "DataLoader" not in error
    elsewhere = f"--trainer.default_root_dir={tmp_path / 'elsewhere'}"  # its own folder holds a run
    assert run("fit", "-c", var.folder / "config.yaml", elsewhere, "--model.transformer.scales=[1,3,8]") == 2
    assert "scales are 1,3,8, those of the tokenizer's residual codes 1,2,4,8" in capsys.readouterr().err


def test_an_edit_has_a_name(capsys):
    assert run("edit", "repaint") == 2
    assert "choose from 'inpaint', 'outpaint', 'refine', 'extend'" in capsys.readouterr().err


def test_what_is_no_size_no_place_and_no_image_is_refused(files):
    with pytest.raises(ValueError, match="--size '64' is not a size: write HEIGHTxWIDTH"):
        parse_size("64")
    with pytest.raises(ValueError, match="'middle' is not a place: write one of center, left"):
        parse_place("middle", (0, 0), 4)
    with pytest.raises(ValueError, match="broken.png cannot be read as an image"):
        read_image(files / "broken.png", 1)


def test_nothing_is_replaced_unasked(flexvar, files, tmp_path, capsys):
    request = [f"--image={files / 'image.png'}", f"--out={tmp_path / 'out.png'}", "--label=1", *flexvar.model]
    for taken in ("out.png", "out-sheet.png"):
        (tmp_path / taken).write_bytes(b"precious")
        assert run("edit", "refine", *request) == 2
        assert f"{tmp_path / taken} is there already" in capsys.readouterr().err
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(taken, b"precious")]
        (tmp_path / taken).unlink()
    assert run("edit", "refine", *request) == 0 and len(list(tmp_path.iterdir())) == 2
    (tmp_path / "editing.png").write_bytes(b"precious")
    assert run("pictures", *flexvar.model, f"--output_dir={tmp_path}", f"--image_dir={files}") == 2
    assert f"{tmp_path / 'editing.png'} is there already" in capsys.readouterr().err


def test_a_run_whose_tokenizer_has_no_file_is_edited_drawn_and_exported(flexvar, images, files, tmp_path, capsys):
    """Its weights are what the seed gives, in every command."""
    (tmp_path / "overlay.yaml").write_text("model: {init_args: {tokenizer: {init_args: {weights: null}}}}")
    configs = ["-c", flexvar.folder / "config.yaml", "-c", tmp_path / "overlay.yaml"]
    folder = f"--trainer.default_root_dir={tmp_path / 'run'}"
    assert run("fit", folder, *configs) == 0
    last = ["--ckpt_path=last", folder]
    image = [f"--image={files / 'image.png'}", f"--out={tmp_path / 'out.png'}", "--label=1"]
    assert run("edit", "refine", *last, *configs, *image) == 0
    drawn = [f"--output_dir={tmp_path / 'drawn'}", f"--image_dir={images}", "--num_images=2"]
    assert run("pictures", *drawn, *configs, *last) == 0
    assert run("export", f"--output_dir={tmp_path / 'exported'}", *configs, *last) == 0
    recorded = ["-c", tmp_path / "run/fit.yaml", *last]
    assert run("edit", "refine", *recorded, *image, "--force") == 0
    capsys.readouterr()
    assert run("edit", "refine", *recorded, *image, "--force", "--seed_everything=1") == 2
    assert "was trained on latents of a tokenizer with fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["edit", "refine", "--image=a", "--label=1"], ["pictures"], ["export"]])
def test_what_is_no_generator_is_told(experiment, tmp_path, capsys, command):
    place = f"--out={tmp_path / 'a.png'}" if command[0] == "edit" else f"--output_dir={tmp_path / 'a'}"
    assert run(*command, place, *experiment.tokenizer(), f"--ckpt_path={experiment.checkpoint('kl')}") == 2
    assert "takes generators, and a TokenizerModule generates nothing" in capsys.readouterr().err


def test_pictures_show_sizes_and_edits(flexvar, images, tmp_path):
    assert run("pictures", *flexvar.model, f"--output_dir={tmp_path}", f"--image_dir={images}", "--num_images=3") == 0
    for name in ("flexible.png", "editing.png"):
        picture = load(tmp_path / name)
        assert picture.ndim == 3 and picture.shape[1] > 3 * SIDE and picture.std() > 10
