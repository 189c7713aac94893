"""Image files that people have: what lies beside the pixels decides nothing, and what cannot be read is named."""

import io
import struct
import zlib

import numpy as np
import pytest
from pack_fixtures import decode, make_tree, noise, pack_here, samples
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


def test_more_pixels_than_the_limit_need_an_option(tmp_path):
    root = tmp_path / "in" / "maps"
    root.mkdir(parents=True)
    (root / "world.png").write_bytes(encoded("PNG", Image.new("1", (20_000, 10_000))))
    with pytest.raises(ValueError, match=r"world\.png .*200000000 pixels.*--source\.max_pixels"):
        pack_here(ImageFolder(str(root.parent)), tmp_path / "out")
    limit = Image.MAX_IMAGE_PIXELS
    index = pack_here(ImageFolder(str(root.parent), max_pixels=200_000_000), tmp_path / "out")
    assert index.num_samples("train") == 1 and limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="max_pixels"):
        open_image(encoded("PNG"), max_pixels=24 * 16 - 1)
    assert open_image(encoded("PNG"), max_pixels=24 * 16).size == (24, 16)


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


def test_numbered_classes_come_in_the_order_of_their_numbers(tmp_path, capsys):
    names = [str(number) for number in range(12)]
    index = pack_here(ImageFolder(str(make_tree(tmp_path / "in", names, count=1))), tmp_path / "out")
    assert index.class_names == names
    assert "label -> class" in capsys.readouterr().out.splitlines()
    make_tree(tmp_path / "deep", ("b/10", "b/9", "a/007", "a/7", "10", "x10", "x9", "2"), count=1)
    names = ImageFolder(str(tmp_path / "deep")).listing(0).class_names
    assert names == ["2", "10", "a/007", "a/7", "b/9", "b/10", "x10", "x9"]


def test_label_and_class_are_printed(tmp_path, capsys):
    pack_here(ImageFolder(str(make_tree(tmp_path / "in", count=1))), tmp_path / "out")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["label", "->", "class"],
        ["0", "->", "cat"],
        ["1", "->", "dog"],
    ]


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_a_root_above_the_splits_is_packed_as_these(tmp_path, val):
    for number, split in enumerate(("train", val)):
        make_tree(tmp_path / "in" / split, count=3 - number)
    index = pack_here(ImageFolder(str(tmp_path / "in")), tmp_path / "out")
    assert index.class_names == ["cat", "dog"] and list(index.splits) == ["train", "val"]
    assert (index.num_samples("train"), index.num_samples("val")) == (6, 4)
    assert all(decode(members).shape == (16, 16, 3) for _, members in samples(tmp_path / "out", "val"))


def test_splits_without_classes_and_splits_among_others(tmp_path):
    make_tree(tmp_path / "flat", ("train", "test"), count=2)
    listing = ImageFolder(str(tmp_path / "flat")).listing(0)
    assert listing.class_names == [] and [len(entries) for entries in listing.splits.values()] == [2, 2]
    make_tree(tmp_path / "vehicles", ("train", "bus"))
    assert ImageFolder(str(tmp_path / "vehicles")).listing(0).class_names == ["bus", "train"]
    make_tree(tmp_path / "more", ("train/cat", "val/cat", "unlabelled"))
    with pytest.raises(ValueError, match="beside other .*val_root"):
        ImageFolder(str(tmp_path / "more")).listing(0)
    make_tree(tmp_path / "both", ("train/cat", "val/cat"))
    with pytest.raises(ValueError, match="leave out"):
        ImageFolder(str(tmp_path / "both"), val_fraction=0.5).listing(0)
    make_tree(tmp_path / "only", ("train/cat", "train/dog"))
    listing = ImageFolder(str(tmp_path / "only"), val_fraction=0.5).listing(0)
    assert listing.class_names == ["cat", "dog"] and [len(found) for found in listing.splits.values()] == [6, 6]
