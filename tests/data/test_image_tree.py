"""Folders of images as people have them: what is an image, what a split, and which label a class gets."""

import subprocess
import sys
from collections import Counter

import pytest
from pack_fixtures import decode, make_tree, noise, pack_here, samples

from scalear.data.image_tree import find_images, in_class_order
from scalear.data.sources import ImageFolder


def test_numbered_classes_come_in_the_order_of_their_numbers(tmp_path, capsys):
    names = [str(number) for number in range(12)]
    index = pack_here(ImageFolder(str(make_tree(tmp_path / "in", names, count=1))), tmp_path / "out")
    assert index.class_names == names
    assert "label -> class" in capsys.readouterr().out.splitlines()
    make_tree(tmp_path / "deep", ("b/10", "b/9", "a/007", "a/7", "10", "x10", "x9", "2"), count=1)
    names = ImageFolder(str(tmp_path / "deep")).listing(0).class_names
    assert names == ["2", "10", "a/007", "a/7", "b/9", "b/10", "x10", "x9"]
    assert in_class_order(["1", "0", "-1", "10.5", "2.50", "+3"]) == ["-1", "0", "1", "2.50", "+3", "10.5"]


def test_label_and_class_are_printed(tmp_path, capsys):
    pack_here(ImageFolder(str(make_tree(tmp_path / "in", count=1))), tmp_path / "out")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["label", "->", "class"],
        ["0", "->", "cat"],
        ["1", "->", "dog"],
    ]


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "val"), ("train", "valid"), ("Train", "Validation"), ("training", "dev"), ("train_set", "val2017")],
)
def test_a_root_above_the_splits_is_packed_as_these(tmp_path, train, val):
    for number, split in enumerate((train, val)):
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


def split_of_each(root):
    listing = ImageFolder(str(root)).listing(0)
    return {
        (split, listing.class_names[entry.label] if listing.class_names else None)
        for split, entries in listing.splits.items()
        for entry in entries
    }


def test_splits_may_lie_deeper(tmp_path):
    make_tree(tmp_path / "wrapped", ("big/set/train/cat", "big/set/train/dog", "big/set/test/cat"))
    assert split_of_each(tmp_path / "wrapped") == {("train", "cat"), ("train", "dog"), ("test", "cat")}
    make_tree(tmp_path / "inner", ("cat/train", "cat/val", "dog/train", "dog/val/more"))
    with pytest.raises(ValueError, match="no class 'dog/more'"):
        split_of_each(tmp_path / "inner")
    make_tree(tmp_path / "below", ("cat/train", "cat/val", "dog/Train", "dog/test"))
    both = {("train", "cat"), ("train", "dog"), ("val", "cat"), ("test", "dog")}
    assert split_of_each(tmp_path / "below") == both
    make_tree(tmp_path / "part", ("cat/train", "cat/val", "dog"))  # no split for dogs: these are names of classes
    assert {name for _, name in split_of_each(tmp_path / "part")} == {"cat/train", "cat/val", "dog"}
    make_tree(tmp_path / "one", ("vehicles/train",))
    assert ImageFolder(str(tmp_path / "one")).listing(0).class_names == ["vehicles/train"]


def test_an_image_without_a_class_is_named(tmp_path):
    make_tree(tmp_path, ("train/cat", "train/dog", "val"))
    with pytest.raises(ValueError, match=r"val/photo\.\d+\.png: it lies in no class folder, .*source\.val_root"):
        ImageFolder(str(tmp_path)).listing(0)


def test_what_systems_leave_behind_is_no_class(tmp_path, caplog):
    folders = ("cat", "__MACOSX/cat", "dog/@eaDir/photo.png", ".thumbnails", "dog/.ipynb_checkpoints", "$RECYCLE.BIN")
    make_tree(tmp_path, (*folders, "dog"), count=1)
    for name in ("cat/._photo.png", "cat/.DS_Store", "Thumbs.db", "cat/labels.h5", "dog/film.mpg"):
        (tmp_path / name).write_bytes(b"x")
    assert set(find_images(str(tmp_path)).values()) == {"cat", "dog"}
    assert "left out 10 files that are hidden or that Pillow does not open" in caplog.text


def test_links_are_followed_but_not_in_circles(tmp_path):
    make_tree(tmp_path / "in", ("cat", "dog"), count=1)
    (tmp_path / "in" / "bird").symlink_to(tmp_path / "in" / "dog")
    (tmp_path / "in" / "cat" / "all").symlink_to(tmp_path / "in")
    assert sorted(find_images(str(tmp_path / "in")).values()) == ["bird", "cat", "dog"]


def test_names_may_be_of_any_kind(tmp_path):
    make_tree(tmp_path / "in", ("\u65e5\u672c", "a b", "dot.ted"), count=1)
    noise((20, 24)).save(tmp_path / "in" / "a b" / "\u00e9t\u00e9 (1).JPG", "PNG")  # not what it is called
    index = pack_here(ImageFolder(str(tmp_path / "in")), tmp_path / "out")
    assert index.class_names == ["a b", "dot.ted", "\u65e5\u672c"] and index.num_samples("train") == 4
    assert all(key.isascii() and "." not in key for key, _ in samples(tmp_path / "out"))


@pytest.mark.integration  # in a process that has loaded nothing
def test_images_are_found_before_pillow_has_opened_one(tmp_path):
    make_tree(tmp_path, ("cat",), count=1)
    script = "import sys; from scalear.data.image_tree import find_images; assert len(find_images(sys.argv[1])) == 1"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_a_part_of_a_large_tree_has_all_classes_and_splits(tmp_path):
    root = make_tree(tmp_path / "in" / "train", count=20)
    make_tree(tmp_path / "in" / "val", count=10)
    make_tree(tmp_path / "in" / "train", ("cat",), count=40)  # over some that were there
    whole, part = (ImageFolder(str(tmp_path / "in"), max_images=most).listing(0) for most in (1000, 16))
    assert part.class_names == whole.class_names and sum(map(len, part.splits.values())) == pytest.approx(16, abs=2)
    for split, entries in part.splits.items():
        assert {entry.label for entry in entries} == {0, 1}
        assert {entry.key for entry in entries} < {entry.key for entry in whole.splits[split]}
    least = ImageFolder(str(root), max_images=1).listing(0)
    assert sorted(entry.label for entry in least.splits["train"]) == [0, 1]
    with pytest.raises(ValueError, match="max_images is 0"):
        ImageFolder(str(root), max_images=0)


def test_small_classes_are_listed_several_times(tmp_path):
    for name, count in (("many", 60), ("some", 20), ("few", 4)):
        make_tree(tmp_path / "in", (name,), count=count)
    source = ImageFolder(str(tmp_path / "in"), val_fraction=0.25, balance=0.5)
    listing = source.listing(0)
    train, val = (Counter(entry.label for entry in listing.splits[split]) for split in ("train", "val"))
    assert listing.class_names == ["few", "many", "some"]
    assert val == {0: 1, 1: 15, 2: 5} and train == {0: 3 * 8, 1: 45, 2: 2 * 15}
    keys = [entry.key for entry in listing.splits["train"]]
    assert len(set(keys)) == len(keys)
    assert not {entry.location for entry in listing.splits["val"]} & {
        entry.location for entry in listing.splits["train"]
    }
    index = pack_here(source, tmp_path / "out")
    assert index.num_samples("train") == 99
    rare = ImageFolder(str(tmp_path / "in"), balance=1.0).listing(0)
    assert Counter(entry.label for entry in rare.splits["train"])[0] == 4 * 10  # no more than ten times
    with pytest.raises(ValueError, match="balance is 2"):
        ImageFolder(str(tmp_path / "in"), balance=2)
