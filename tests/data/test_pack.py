import gzip
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from pack_fixtures import content_of, decode, make_tree, noise, pack_here, samples
from PIL import Image

from scalear.data.imaging import center_crop, standardise
from scalear.data.index import DatasetIndex
from scalear.data.progress import PROGRESS_NAME
from scalear.data.sources import FashionMNIST, ImageFolder

DEBIAN = Path(FashionMNIST().root)
needs_fashion = pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian package dataset-fashion-mnist is not installed")


def test_round_trip_keeps_every_pixel_and_label(tmp_path):
    root = make_tree(tmp_path / "in", ("b/inner", "a", "c.v1"), size=(16, 16))
    index = pack_here(ImageFolder(str(root)), tmp_path / "out", shard_size=5)
    assert index == DatasetIndex.load(tmp_path / "out")
    assert index.class_names == ["a", "b/inner", "c.v1"]
    assert [shard.num_samples for shard in index.shards("train")] == [5, 5, 5, 3]
    packed = {
        (index.class_names[int(members["cls"])], decode(members).tobytes()) for _, members in samples(tmp_path / "out")
    }
    expected = {
        (path.parent.relative_to(root).as_posix(), np.asarray(Image.open(path)).tobytes())
        for path in root.rglob("*.png")
    }
    assert packed == expected
    assert not (tmp_path / "out" / PROGRESS_NAME).exists()


@pytest.mark.integration  # on spawned workers
def test_packing_is_deterministic_for_any_number_of_workers(tmp_path):
    source = ImageFolder(str(make_tree(tmp_path / "in")), val_fraction=0.3)
    pack_here(source, tmp_path / "a", shard_size=4, compress=True, name="x")
    time.sleep(1.1)  # a time stamp anywhere would differ now
    pack_here(source, tmp_path / "b", shard_size=4, compress=True, name="x", num_workers=2)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")


def test_unlabelled(tmp_path):
    make_tree(tmp_path / "in", ("",))
    index = pack_here(ImageFolder(str(tmp_path / "in")), tmp_path / "flat")
    assert index.class_names == []
    assert all(set(members) == {"png"} for _, members in samples(tmp_path / "flat"))
    make_tree(tmp_path / "nested", ("00", "01"))
    assert pack_here(ImageFolder(str(tmp_path / "nested"), labelled=False), tmp_path / "out").num_classes == 0


def test_validation_split(tmp_path):
    root = make_tree(tmp_path / "in", count=10)
    listing = ImageFolder(str(root), val_fraction=0.2).listing(seed=0)
    assert [sum(entry.label == label for entry in listing.splits["val"]) for label in (0, 1)] == [2, 2]
    assert len({entry.location for split in listing.splits.values() for entry in split}) == 20
    assert ImageFolder(str(root), val_fraction=0.2).listing(seed=1) != listing
    make_tree(tmp_path / "val", ("dog",), count=3)
    listing = ImageFolder(str(root), val_root=str(tmp_path / "val")).listing(seed=0)
    assert [entry.label for entry in listing.splits["val"]] == [1, 1, 1]
    make_tree(tmp_path / "val", ("bird",), count=1)
    with pytest.raises(ValueError, match="no class 'bird'"):
        ImageFolder(str(root), val_root=str(tmp_path / "val")).listing(seed=0)


def test_bad_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        ImageFolder(str(tmp_path / "nowhere")).listing(0)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="holds no images"):
        ImageFolder(str(tmp_path)).listing(0)
    make_tree(tmp_path)
    noise((8, 8)).save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="loose.png"):
        ImageFolder(str(tmp_path)).listing(0)
    with pytest.raises(ValueError, match="rounds to none"):
        ImageFolder(str(tmp_path), labelled=False, val_fraction=0.01).listing(0)


def test_every_mode_becomes_what_it_looks_like():
    red = (255, 0, 0)
    half_red = Image.new("RGBA", (4, 4), (*red, 128))
    palette = Image.new("RGB", (4, 4), red).quantize(4)
    transparent = palette.copy()
    transparent.info["transparency"] = palette.getpixel((0, 0))
    ramp = np.array([[0, 128, 257, 32896], [65535] * 4, [0] * 4, [514] * 4])
    expected_ramp = [0, 0, 1, 128]
    cases = [
        (half_red, (255, 127, 127)),
        (palette, red),
        (transparent, (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), red),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("LAB", (4, 4), (128, 128, 128)), (119, 119, 119)),
        (Image.new("YCbCr", (4, 4), (128, 128, 128)), (128, 128, 128)),
        (Image.new("F", (4, 4), 0.5), (128, 128, 128)),
    ]
    for image, colour in cases:
        found = np.asarray(standardise(image, 3))[0, 0].astype(int)
        assert np.abs(found - colour).max() <= 2, (image.mode, found)
    for image in (Image.fromarray(ramp.astype(np.uint16)), Image.fromarray(ramp.astype(np.int32))):
        assert np.asarray(standardise(image, 1))[0].tolist() == expected_ramp
    with pytest.raises(ValueError, match="expected"):
        standardise(Image.new("F", (4, 4), 3.0), 3)


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "jp2"])
def test_file_formats(tmp_path, extension):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / "in" / f"x.{extension.upper()}")
    pack_here(ImageFolder(str(tmp_path / "in")), tmp_path / "out")
    ((_, members),) = samples(tmp_path / "out")
    assert np.abs(decode(members).astype(int) - (200, 100, 50)).max() <= 3


def test_exif_orientation(tmp_path):
    (tmp_path / "in").mkdir()
    image = noise((16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    image.save(tmp_path / "in" / "x.png", exif=exif)
    pack_here(ImageFolder(str(tmp_path / "in")), tmp_path / "out")
    ((_, members),) = samples(tmp_path / "out")
    assert np.array_equal(decode(members), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_output_formats(tmp_path, image_format, channels):
    source = ImageFolder(str(make_tree(tmp_path / "in", count=1)))
    if (image_format, channels) == ("webp", 1):
        with pytest.raises(ValueError, match="grey"):
            pack_here(source, tmp_path / "out", image_format=image_format, image_channels=channels)
        return
    pack_here(source, tmp_path / "out", image_format=image_format, image_channels=channels)
    for _, members in samples(tmp_path / "out"):
        assert set(members) == {image_format, "cls"}
        assert decode(members).shape == ((16, 16, 3) if channels == 3 else (16, 16))


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (64, 31), (200, 90), (5, 9), (1, 30)])
def test_center_crop(size):
    image = noise(size)
    expected = image
    while min(expected.size) >= 32:
        expected = expected.resize(tuple(side // 2 for side in expected.size), Image.Resampling.BOX)
    scale = 16 / min(expected.size)
    expected = expected.resize(tuple(round(side * scale) for side in expected.size), Image.Resampling.BICUBIC)
    pixels = np.asarray(expected)
    top, left = (pixels.shape[0] - 16) // 2, (pixels.shape[1] - 16) // 2
    assert np.array_equal(np.asarray(center_crop(image, 16)), pixels[top : top + 16, left : left + 16])
    if size == (16, 16):
        assert np.array_equal(np.asarray(center_crop(image, 16)), np.asarray(image))


def test_unreadable_images_are_named_and_refused_or_counted(tmp_path, caplog):
    root = make_tree(tmp_path / "in")
    broken = root / "cat" / "photo.0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (root / "dog" / "empty.jpg").touch()
    source = ImageFolder(str(root))
    with pytest.raises(ValueError, match=r"2 unreadable.*at most 0(.|\n)*max_bad_fraction") as error:
        pack_here(source, tmp_path / "out")
    assert str(broken) in str(error.value) and "empty.jpg" in str(error.value)
    assert not list((tmp_path / "out").glob("*.tar*"))
    with pytest.raises(ValueError, match="at most 1 are allowed"):
        pack_here(source, tmp_path / "out", max_bad_fraction=0.1, shard_size=1000)
    index = pack_here(source, tmp_path / "out", max_bad_fraction=0.2)
    assert index.num_samples("train") == 11
    assert str(broken) in caplog.text and "empty.jpg" in caplog.text


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def make_fashion(root, per_class=7):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
    images = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    root.mkdir(parents=True)
    write_idx(root / "train-images-idx3-ubyte.gz", images)
    write_idx(root / "train-labels-idx1-ubyte.gz", labels)
    write_idx(root / "t10k-images-idx3-ubyte.gz", images[::-1])
    write_idx(root / "t10k-labels-idx1-ubyte.gz", labels[::-1])
    return images, labels


@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_balanced_disjoint_and_padded(tmp_path, layout):
    images, labels = make_fashion(tmp_path / "in" / layout)
    root = str(tmp_path / "in")
    pack_here(FashionMNIST(root, num_train=30, num_val=20), tmp_path / "first", 32)
    pack_here(FashionMNIST(root, num_train=20, num_val=0, skip=50), tmp_path / "rest", 32)
    rows = []
    for directory, split, count in (("first", "train", 3), ("first", "val", 2), ("rest", "train", 2)):
        split_labels = []
        for key, members in samples(tmp_path / directory, split):
            row = int(key.removeprefix("fashion-"))
            assert np.array_equal(decode(members), np.pad(images[row], 2))
            assert int(members["cls"]) == labels[row]
            rows.append(row)
            split_labels.append(labels[row])
        assert np.bincount(split_labels).tolist() == [count] * 10
    assert sorted(rows) == list(range(70))
    assert DatasetIndex.load(tmp_path / "rest").image_channels == 1
    with pytest.raises(ValueError, match="need 8 images of each class, the file train has 7"):
        FashionMNIST(root, num_train=30, num_val=0, skip=50).listing(0)


def test_the_original_test_file_makes_a_split_of_its_own(tmp_path):
    images, labels = make_fashion(tmp_path / "in")
    source = FashionMNIST(str(tmp_path / "in"), num_train=50, num_val=20, num_test=40)
    without = FashionMNIST(str(tmp_path / "in"), num_train=50, num_val=20)
    listing = source.listing(0)
    assert {split: listing.splits[split] for split in ("train", "val")} == without.listing(0).splits
    entries = listing.splits["test"]
    assert np.bincount([entry.label for entry in entries]).tolist() == [4] * 10
    for entry in entries:
        row = int(entry.key.removeprefix("fashion-test-"))
        assert entry.label == labels[::-1][row]
        assert np.array_equal(np.asarray(source.image(entry)), np.pad(images[::-1][row], 2))
    with pytest.raises(ValueError, match="num_test need 8 images of each class, the file t10k has 7"):
        FashionMNIST(str(tmp_path / "in"), num_test=80, num_train=0, num_val=0).listing(0)


def test_bad_fashion_mnist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 10"):
        FashionMNIST(num_train=15)
    with pytest.raises(ValueError, match="dataset-fashion-mnist.*download: true"):
        FashionMNIST(str(tmp_path)).listing(0)
    make_fashion(tmp_path / "in")
    path = tmp_path / "in" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="train-labels.*fetch it again"):
        FashionMNIST(str(tmp_path / "in"), 10, 0).listing(0)


@needs_fashion
def test_embedded_set_is_what_its_command_makes(tmp_path):
    embedded = Path(__file__).parents[2] / "data" / "fashion-mnist"
    listing = FashionMNIST().listing(seed=0)
    for split, count in (("train", 12_000), ("val", 2_000)):
        assert len(listing.splits[split]) == count
        packed = samples(embedded, split)
        for entry, (key, members) in zip(listing.splits[split][:20], packed, strict=False):
            assert (key, int(members["cls"])) == (entry.key, entry.label)
            assert np.array_equal(decode(members), np.asarray(FashionMNIST().image(entry)))
