"""Image files that people have: what lies beside the pixels decides nothing, and what cannot be read is named."""

import io
import struct
import zlib

import numpy as np
import pytest
from pack_fixtures import make_tree, noise, pack_here
from PIL import Image, features

from scalear.data import imaging
from scalear.data.decoding import open_image
from scalear.data.imaging import center_crop, standardise
from scalear.data.sources import ImageFolder

PICTURE = noise((24, 16))
BROKEN_EXIF = {
    "no TIFF": b"Exif\0\0garbage!",
    "printed": b"b'Exif\\x00\\x00MM'",
    "cut": b"Exif\0\0MM\0*",
    "far offset": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "many values": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0\x08\0\0\0",
    "text for a turn": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0ab\0\0\0\0\0\0",
}


def encoded(format, image=PICTURE, **options):
    with io.BytesIO() as stream:
        image.save(stream, format, **options)
        return stream.getvalue()


def chunk(kind, content, crc=None):
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png_with(*extra, before=b"IDAT"):
    content = encoded("PNG")
    place = content.index(before) - 4
    return content[:place] + b"".join(extra) + content[place:]


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_says_nothing_about_the_picture(format, exif):
    options = {"lossless": True} if format == "WEBP" else {}
    found = standardise(open_image(encoded(format, exif=exif, **options)), 3)
    expected = Image.open(io.BytesIO(encoded(format, **options)))
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.skipif(not features.check("avif"), reason="Pillow here reads no AVIF")
def test_broken_exif_in_avif():
    exif = Image.Exif()
    exif[0x10F] = "somebody"
    content = encoded("AVIF", exif=exif)
    place = max(content.find(b"MM\0*"), content.find(b"II*\0"))
    broken = content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :]
    assert np.array_equal(np.asarray(open_image(broken)), np.asarray(open_image(content)))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_every_turn_is_undone(format, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = np.asarray(PICTURE)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright[::-1], -1)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[turn]
    content = encoded(format, Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(np.asarray(standardise(open_image(content), 3)), upright)


MANY = zlib.compress(b"a" * (3 << 20))
METADATA = {
    "text": chunk(b"zTXt", b"workflow\0\0" + MANY),
    "international text": chunk(b"iTXt", b"prompt\0\x01\0\0\0" + MANY),
    "plain text, much in all": chunk(b"tEXt", b"a\0" + b"b" * (1 << 20)) * 70,
    "profile": chunk(b"iCCP", b"profile\0\0" + MANY),
    "profile that is none": chunk(b"iCCP", b"profile\0\0nothing compressed"),
    "hexadecimal EXIF": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  8\nnothex!!\n"),
    "checksum": chunk(b"tEXt", b"a\0b", crc=0),
    "private": chunk(b"prVt", b"x" * (3 << 20)),
}


def jpeg_with(kind, content):
    raw = encoded("JPEG")
    return raw[:2] + b"\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2) + content + raw[2:]


SEGMENTS = {
    "no JFIF": (0xE0, b"JFIF"),
    "no profile": (0xE2, b"ICC_PROFILE\0\x05"),
    "no Adobe": (0xEE, b"Adobe"),
    "no Photoshop": (0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\xff"),
    "no MPO": (0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0"),
    "no text": (0xFE, b"\xff\xfe\xfd"),
    "no XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>\xff</tiff:Orientation>"),
}


@pytest.mark.parametrize(("kind", "content"), SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
def test_broken_segments_of_jpeg_are_passed_over(kind, content):
    found = standardise(open_image(jpeg_with(kind, content)), 3)
    assert np.array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(encoded("JPEG")))))


def test_the_turn_of_a_jpeg_with_broken_segments_is_undone():
    exif = Image.Exif()
    exif[0x0112] = 3
    raw = encoded("JPEG", exif=exif)
    broken = raw[:2] + b"\xff\xe2" + struct.pack(">H", 15) + b"ICC_PROFILE\0\x05" + raw[2:]
    upright = np.asarray(Image.open(io.BytesIO(encoded("JPEG"))))
    assert np.array_equal(np.asarray(standardise(open_image(broken), 3)), upright[::-1, ::-1])


@pytest.mark.parametrize("content", [b"", b"\0\1"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparency_that_does_not_fit_is_passed_over(mode, content):
    raw = encoded("PNG", PICTURE.convert(mode))
    place = raw.index(b"IDAT") - 4
    content = content[: 1 if mode == "L" else 2]  # two bytes fit a grey picture
    found = open_image(raw[:place] + chunk(b"tRNS", content) + raw[place:])
    assert np.array_equal(np.asarray(found), np.asarray(PICTURE.convert(mode)))


@pytest.mark.parametrize("extra", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_large_or_broken_metadata_is_passed_over(extra, before):
    found = standardise(open_image(png_with(extra, before=before)), 3)
    assert np.array_equal(np.asarray(found), np.asarray(PICTURE))


def test_transparency_is_no_metadata():
    content = encoded("PNG", Image.new("RGB", (4, 4), (255, 0, 0)), transparency=(255, 0, 0))
    place = content.index(b"IDAT") - 4
    content = content[:place] + METADATA["text"] + content[place:]
    assert np.asarray(standardise(open_image(content), 3)).min() == 255


def test_broken_pixels_stay_broken():
    content = encoded("PNG")
    with pytest.raises(OSError, match="truncated"):
        open_image(content[:-200])


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"GIF89a"])
def test_what_is_no_image_is_said(content):
    with pytest.raises(ValueError, match=f"it is no image: {len(content)} bytes, which begin with b'"):
        open_image(content)


@pytest.mark.integration
def test_more_pixels_than_the_limit_need_an_option(tmp_path):
    root = tmp_path / "in" / "maps"
    root.mkdir(parents=True)
    (root / "world.png").write_bytes(encoded("PNG", Image.new("1", (20_000, 10_000))))
    with pytest.raises(
        ValueError, match=r"world\.png .*200000000 pixels\) exceeds limit of 178956970 pixels.*--source\.max_pixels"
    ):
        pack_here(ImageFolder(str(root.parent)), tmp_path / "out")
    limit = Image.MAX_IMAGE_PIXELS
    index = pack_here(ImageFolder(str(root.parent), max_pixels=200_000_000), tmp_path / "out")
    assert index.num_samples("train") == 1 and limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="max_pixels"):
        open_image(encoded("PNG"), max_pixels=24 * 16 - 1)
    assert open_image(encoded("PNG"), max_pixels=24 * 16).size == (24, 16)
    with pytest.raises(ValueError, match="max_pixels is 0, must be at least 1"):
        ImageFolder(str(root.parent), max_pixels=0)


@pytest.mark.parametrize("size", [(1, 30), (300, 21), (33, 2000), (5, 4000), (256, 16)])
def test_long_strips_are_cropped_as_all_others(size, monkeypatch):
    expected = np.asarray(center_crop(noise(size), 16)).astype(int)
    monkeypatch.setattr(imaging, "_LARGE_PIXELS", 0)
    assert np.abs(np.asarray(center_crop(noise(size), 16)) - expected).max() <= 1


@pytest.mark.parametrize("size", [(1, 1_000_000), (60_000, 1), (2, 65_000)])
def test_long_strips_take_no_more_memory_than_they_are(size, monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, to, *a, **k: sizes.append(to) or resize(image, to, *a, **k)
    )
    assert center_crop(Image.new("RGB", size), 512).size == (512, 512)
    assert max(width * height for width, height in sizes) <= imaging._LARGE_PIXELS


def test_the_file_is_named_whatever_fails(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "in", ("cat",), count=2)
    (root / "cat" / "flat.ppm").write_bytes(b"P6 0 4 255\n")
    monkeypatch.setattr("scalear.data.pack.encode", lambda *_: 1 / 0)
    with pytest.raises(ValueError) as error:
        pack_here(ImageFolder(str(root)), tmp_path / "out")
    for name in ("photo.0.png (ZeroDivisionError", "photo.1.png (ZeroDivisionError", "flat.ppm ("):
        assert name in str(error.value)
