import numpy as np
import pytest
import torch
from PIL import Image

from scalear.evaluation.images import (
    load_samples,
    make_grid,
    save_png,
    save_sample_blocks,
    save_samples,
    stored_origin,
    to_uint8,
)


def test_to_uint8_rounds_clamps_and_inverts_every_level():
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    assert to_uint8(torch.tensor([[[[-1.7, 3.0]]]])).flatten().tolist() == [0, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 1, 2, 2), float("nan")))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_image_row_by_row(channels):
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, channels, 4, 6)
    grid = make_grid(images, columns=3, scale=2)
    assert grid.shape == (2 * (2 * 6 + 2), 2 * (3 * 8 + 2), channels)
    for place in range(5):
        top, left = 2 * (place // 3 * 6 + 2), 2 * (place % 3 * 8 + 2)
        assert (grid[top : top + 8, left : left + 12] == place).all()
    assert (grid[-1] == 255).all() and (grid[16:24, 36:48] == 255).all()  # border and the empty sixth cell
    np.testing.assert_array_equal(make_grid(images.permute(0, 2, 3, 1).numpy(), columns=3, scale=2), grid)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, channels), dtype=np.uint8)
    save_png(tmp_path / "deep" / "image.png", image)
    read = np.asarray(Image.open(tmp_path / "deep" / "image.png")).reshape(image.shape)
    np.testing.assert_array_equal(read, image)


def test_sample_set_round_trip_in_adm_layout(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    save_samples(tmp_path / "samples.npz", images, np.array([2, 0, 1], dtype=np.int32))
    read, labels = load_samples(tmp_path / "samples.npz")
    np.testing.assert_array_equal(read, images)
    assert labels.dtype == np.int64 and labels.tolist() == [2, 0, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["samples.npz"]


def test_bad_sample_sets_are_refused_and_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        save_samples(tmp_path / "samples.npz", np.zeros((2, 8, 8, 1)), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="one integer label"):
        save_samples(tmp_path / "samples.npz", np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="no sample set"):
        load_samples(tmp_path / "samples.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    with pytest.raises(ValueError, match="not a sample set"):
        load_samples(tmp_path / "other.npz")
    assert not (tmp_path / "samples.npz").exists()


def test_a_sample_set_of_blocks_is_that_of_one_and_says_what_it_follows_from(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8), np.arange(9)
    save_samples(tmp_path / "whole.npz", images, labels)
    save_sample_blocks(tmp_path / "blocks.npz", (images[start : start + 4] for start in (0, 4, 8)), labels)
    assert (tmp_path / "blocks.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert stored_origin(tmp_path / "whole.npz") == ""
    save_sample_blocks(tmp_path / "whole.npz", [images], labels, "a checkpoint")
    assert stored_origin(tmp_path / "whole.npz") == "a checkpoint"
    assert np.array_equal(load_samples(tmp_path / "whole.npz")[0], images)
    np.savez(tmp_path / "of_others.npz", arr_0=images)
    assert stored_origin(tmp_path / "of_others.npz") == stored_origin(tmp_path / "missing.npz") == ""


def test_blocks_that_do_not_fit_together_are_refused(tmp_path):
    images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.zeros(4, np.int64)
    for blocks, message in (
        ([images, images[:1]], "4 for 3 images"),
        ([images, images[:, 1:]], "of one size"),
        ([], "of one size"),
    ):
        with pytest.raises(ValueError, match=message):
            save_sample_blocks(tmp_path / "samples.npz", blocks, labels)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_sample_set_is_named(tmp_path):
    path = tmp_path / "samples.npz"
    save_samples(path, np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8), np.arange(4))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        load_samples(path)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "image.png"
    save_png(path, np.zeros((2, 2, 3), np.uint8))
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        save_png(path, np.zeros((2, 2, 5), np.uint8))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
