"""JPEGs that need no resizing are decoded past Pillow, to the same pixels."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torchvision
from pack_fixtures import noise
from PIL import Image, ImageFilter

from scalear.data.decoding import jpeg_pixels, open_image
from scalear.data.imaging import center_crop, standardise
from scalear.data.index import DatasetIndex, RawInfo
from scalear.data.samples import SampleReader


def picture(size, mode="RGB", seed=0):
    return noise(size, seed=seed).filter(ImageFilter.GaussianBlur(1)).convert(mode)


def jpeg(size, mode="RGB", seed=0, **options):
    with io.BytesIO() as stream:
        picture(size, mode, seed).save(stream, "JPEG", **options)
        return stream.getvalue()


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (57, 33), (8, 300), (1, 1)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_blocks": 3},
        {"quality": 30},
        {"keep_rgb": True},
        {"comment": "x" * 300, "icc_profile": b"y" * 70_000},
    ],
    ids=str,
)
def test_pixels_are_those_of_pillow(size, subsampling, options):
    if "keep_rgb" in options:
        subsampling = "4:4:4"
    content = jpeg(size, subsampling=subsampling, **options)
    assert np.array_equal(jpeg_pixels(memoryview(content), min(size), 3), np.asarray(open_image(content)))


def test_grey_stays_grey():
    content = jpeg((40, 32), "L")
    assert np.array_equal(jpeg_pixels(content, 32, 1)[:, :, 0], np.asarray(open_image(content)))
    assert jpeg_pixels(content, 32, 3) is None
    assert jpeg_pixels(jpeg((40, 32)), 32, 1) is None


def test_all_else_is_left_to_pillow(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    with io.BytesIO() as stream:
        picture((32, 32)).save(stream, "PNG")
        png = stream.getvalue()
    whole = jpeg((40, 32))
    for content in (jpeg((32, 32), exif=exif), jpeg((32, 32), "CMYK"), png, b"", whole[:2], whole[:100], whole[:-99]):
        assert jpeg_pixels(content, 32, 3) is None
    assert jpeg_pixels(whole, 31, 3) is None and jpeg_pixels(whole, 40, 3) is None
    assert jpeg_pixels(whole, 32, 3) is not None
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    assert jpeg_pixels(whole, 32, 3) is None


def test_broken_bytes_give_what_pillow_gives():
    random = np.random.default_rng(0)
    found = 0
    for number in range(300):
        content = bytearray(jpeg((48, 32), seed=number % 3, progressive=number % 2 == 0))
        for place in random.integers(2, len(content), 2):
            content[place] = random.integers(256)
        pixels = jpeg_pixels(bytes(content), 32, 3)
        if pixels is not None:
            found += 1
            assert np.array_equal(pixels, np.asarray(open_image(bytes(content))))
    assert found > 100


@pytest.mark.parametrize("size", [(32, 32), (41, 32), (32, 45), (60, 80)])
def test_a_reader_crops_as_pillow_does(size):
    content = jpeg(size)
    reader = SampleReader(DatasetIndex("x", "images", 32, 3, raw=RawInfo(None)))
    expected = center_crop(standardise(Image.open(io.BytesIO(content)), 3), 32)
    assert np.array_equal(reader.image({"jpg": content}), np.asarray(expected))


@pytest.mark.parametrize("size", [(32, 32), (41, 32), (33, 33)])
def test_packed_images_are_square(size):
    reader = SampleReader(DatasetIndex("x", "images", 32, 3))
    content = jpeg(size)
    if size == (32, 32):
        assert np.array_equal(reader.image({"jpg": content}), np.asarray(open_image(content)))
    else:
        with pytest.raises(ValueError, match=r"width, height and channels are .*, the index says \(32, 32, 3\)"):
            reader.image({"jpg": content})


@pytest.mark.integration  # in a process that has loaded nothing
def test_who_only_checks_files_does_not_wait_for_pytorch():
    script = (
        "import sys; from scalear.data.decoding import jpeg_pixels; from scalear.data import pack, verify;"
        "assert jpeg_pixels(sys.stdin.buffer.read(), 32, 3) is None and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], input=jpeg((32, 32)), check=True)
