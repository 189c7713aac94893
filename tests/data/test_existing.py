"""Shards that other tools wrote: an index makes them a dataset that every reader reads alike."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pack_fixtures import decode, noise, pack_here, samples
from PIL import Image

from scalear.data.datamodule import ShardDataModule
from scalear.data.existing import index
from scalear.data.imaging import center_crop, standardise
from scalear.data.index import DatasetIndex
from scalear.data.reader import BrokenSampleError, ShardReader
from scalear.data.samples import class_in_key
from scalear.data.sources import Shards
from scalear.data.verify import stats, verify
from scalear.evaluation.image_set import ShardSet

SIZES = [(40, 30), (16, 16), (20, 70), (33, 33)]


def picture(number):
    return noise(SIZES[number % len(SIZES)], seed=number)


def jpeg(number):
    with io.BytesIO() as stream:
        picture(number).save(stream, "JPEG", quality=95)
        return stream.getvalue()


def expected(number, size=16):
    image = Image.open(io.BytesIO(jpeg(number)))
    return np.asarray(center_crop(standardise(image, 3), size))


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        content = stream.getvalue()
    path.write_bytes(content if path.suffix == ".tar" else gzip.compress(content))


def labels_of(directory, split="train"):
    made = DatasetIndex.load(directory)
    reader = ShardReader(str(directory), made, split, max_open=4)
    return [made.class_names[reader[number].label] for number in range(len(reader))]


def index_here(directory, **arguments):
    return index(str(directory), **({"image_size": 16, "num_workers": 0} | arguments))


def write_hub_shards(directory):
    """As on the hub: jpg, cls and json, and _info.json beside."""
    splits = {}
    for split, prefix, lengths in (("train", "train", (4, 3)), ("validation", "validation", (2,))):
        names = []
        for shard, length in enumerate(lengths):
            names.append(f"tiny-{prefix}-{shard:04d}.tar")
            members = []
            for row in range(length):
                number = 10 * shard + row
                key = f"n0144076{row % 2}_{number}"
                about = json.dumps({"label": row % 2, "width": 1, "filename": f"{key}.JPEG"}).encode()
                members += [(f"{key}.cls", str(row % 2).encode()), (f"{key}.jpg", jpeg(number)), (f"{key}.json", about)]
            write_tar(directory / names[-1], members)
        splits[split] = {
            "name": split,
            "num_samples": sum(lengths),
            "filenames": names,
            "shard_lengths": list(lengths),
        }
    (directory / "_info.json").write_text(json.dumps({"name": "tiny", "splits": splits}))
    return directory


def test_shards_of_the_hub_are_read_alike_by_all(tmp_path, capsys):
    directory = write_hub_shards(tmp_path / "hub")
    made = index_here(directory)
    assert made == DatasetIndex.load(directory)
    assert [(split, made.num_samples(split)) for split in made.splits] == [("train", 7), ("val", 2)]
    assert made.class_names == ["0", "1"] and made.raw.label == "cls"
    printed = capsys.readouterr().out
    assert "label -> class" in printed and "labels: from cls" in printed
    order = [0, 1, 2, 3, 10, 11, 12]
    reader = ShardReader(str(directory), made, "train", max_open=1)
    for place, number in enumerate(order):
        assert np.array_equal(reader[place].image, expected(number))
        assert reader[place].label == number % 10 % 2
    (block,) = ShardSet(directory, "train").blocks(7)
    assert np.array_equal(block.images, np.stack([expected(number) for number in order]))
    assert block.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    data = ShardDataModule(str(directory), batch_size=2, flip=False)
    (batch,) = data.val_dataloader()
    assert batch.inputs.shape == (2, 3, 16, 16) and batch.label.tolist() == [0, 1]
    verify(str(directory), num_workers=0)
    stats(str(directory), num_workers=0)
    printed = capsys.readouterr().out
    assert "3 shards with 9 samples are sound" in printed and "16x16x3, cropped when read" in printed
    assert printed.splitlines()[-1].split() == ["1", "1", "3", "1"]


def test_a_folder_of_img2dataset_has_no_classes(tmp_path, capsys):
    for shard in range(3):
        members = []
        for row in range(2):
            key = f"{shard:05d}{row:04d}"
            about = json.dumps({"caption": "a cat", "url": "https://example.org", "key": key, "status": "success"})
            members += [(f"{key}.jpg", jpeg(row)), (f"{key}.txt", b"a cat"), (f"{key}.json", about.encode())]
        write_tar(tmp_path / f"{shard:05d}.tar", members)
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 2, "successes": 2}))
    made = index_here(tmp_path, val_shards=1)
    assert made.class_names == [] and made.raw.label is None
    assert {split: made.num_samples(split) for split in made.splits} == {"train": 4, "val": 2}
    assert "no classes" in capsys.readouterr().out
    assert ShardReader(str(tmp_path), made, "train", 1)[3].label == -1
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match="val_shards is 3"):
        index_here(tmp_path, val_shards=3)


@pytest.mark.parametrize("where", ["file", "folder"])
@pytest.mark.parametrize("url", ["{name}", "{folder}/{name}", "file:{folder}/{name}", "/elsewhere/data/{name}"])
def test_a_wids_list_says_which_shards_and_in_which_order(tmp_path, where, url):
    names = ["b.tar", "a.tar"]
    for number, name in enumerate((*names, "stray.tar")):
        write_tar(tmp_path / name, [("x_1.jpg", jpeg(number)), ("x_1.cls", b"0")])
    shards = [{"url": url.format(name=name, folder=tmp_path), "nsamples": 1} for name in names]
    content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "mine", "shardlist": shards}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    made = index_here(tmp_path / "mine.json" if where == "file" else tmp_path)
    assert [shard.name for shard in made.shards("train")] == names
    verify(str(tmp_path), num_workers=0)  # the others are not its affair


def test_a_wids_list_of_splits_and_a_wrong_count(tmp_path):
    for split in ("train", "valid"):
        write_tar(tmp_path / "shards" / f"{split}.tar", [("x_1.jpg", jpeg(0)), ("x_1.cls", b"0")])
    parts = [
        {"name": split, "shardlist": [{"url": f"shards/{split}.tar", "nsamples": 1}]} for split in ("train", "valid")
    ]
    (tmp_path / "all.json").write_text(json.dumps({"wids_version": 1, "datasets": parts}))
    assert list(index_here(tmp_path).splits) == ["train", "val"]
    (tmp_path / "index.json").unlink()
    parts[0]["shardlist"][0]["nsamples"] = 5
    (tmp_path / "all.json").write_text(json.dumps({"wids_version": 1, "datasets": parts}))
    with pytest.raises(ValueError, match=r"shards/train\.tar holds 1 images, its list says 5"):
        index_here(tmp_path)


MALFORMED = {
    "no url": {"shardlist": [{"nsamples": 1}]},
    "no records": {"shardlist": ["a.tar"]},
    "no list": {"shardlist": 5},
    "a text": {"splits": {"train": {"filenames": "a.tar"}}},
    "lengths": {"splits": {"train": {"filenames": ["a.tar", "b.tar"], "shard_lengths": [1]}}},
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_list_is_named(tmp_path, content):
    write_tar(tmp_path / "a.tar", [("x_1.jpg", jpeg(0))])
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"list\.json looks like a list of shards, but .*move it away"):
        index_here(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"datasets": "x"}', '{"splits": ["train"]}', '{"splits": {"train": 5}}']
)
def test_other_json_is_no_list(tmp_path, content):
    write_tar(tmp_path / "a.tar", [("x_1.jpg", jpeg(0))])
    (tmp_path / "about.json").write_text(content)
    assert index_here(tmp_path).num_samples("train") == 1
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match=r"about\.json holds no shards that a list"):
        index_here(tmp_path / "about.json")
    with pytest.raises(ValueError, match=r"a\.tar is a shard: give its folder"):
        index_here(tmp_path / "a.tar")


def test_lists_must_agree(tmp_path):
    write_tar(tmp_path / "a.tar", [("x_1.jpg", jpeg(0)), ("README.md", b"")])
    for split in ("train", "val"):
        shards = [{"url": "a.tar", "nsamples": 2}]
        (tmp_path / f"{split}.json").write_text(json.dumps({"wids_version": 1, "shardlist": shards}))
    with pytest.raises(ValueError, match=r"a\.tar is listed for train and for val: give the list"):
        index_here(tmp_path)
    assert index_here(tmp_path / "val.json").num_samples("val") == 1


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["n01440764_18", "n01443537_2"], ["n01440764", "n01443537"]),
        (["n01440764_18", "n01440764_2"], ["n01440764"]),
        (["./train/n01443537/images/n01443537_0", "x/n01440764_1_n01440764"], ["n01440764", "n01443537"]),
        (["cat/1", "cat/2", "dog/1", "dog/2"], ["cat", "dog"]),
        (["cat_1", "cat_2", "dog-1", "dog-2"], ["cat", "dog"]),
        (["10/1", "10/2", "9/1", "9/2"], ["9", "10"]),
        (["img_1", "img_2"], []),
        (["000001", "000002"], []),
        (["a", "b", "c"], []),
    ],
)
def test_the_class_may_be_in_the_key(tmp_path, keys, names):
    write_tar(tmp_path / "x.tar", [(f"{key}.JPEG", jpeg(number)) for number, key in enumerate(keys)])
    assert index_here(tmp_path).class_names == names
    if names:
        assert labels_of(tmp_path) == [class_in_key(key.removeprefix("./")) for key in keys]


@pytest.mark.parametrize("value", [lambda label: label, str, lambda label: ["cat", "dog"][label]])
@pytest.mark.parametrize("field", ["label", "meta.kind"])
def test_the_label_may_be_a_field_of_json(tmp_path, field, value):
    members = []
    for number in range(4):
        about = {}
        inner = about.setdefault("meta", {}) if "." in field else about
        inner[field.rpartition(".")[2]] = value(number % 2)
        members += [(f"{number}.json", json.dumps(about).encode()), (f"{number}.jpg", jpeg(number))]
    write_tar(tmp_path / "x.tar", members)
    made = index_here(tmp_path, label=None if field == "label" else f"json.{field}")
    assert made.class_names == (["cat", "dog"] if value(0) == "cat" else ["0", "1"])
    reader = ShardReader(str(tmp_path), made, "train", 1)
    assert [reader[number].label for number in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("order", ["by kind", "labels first", "mixed"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_members_may_lie_in_any_order_and_case(tmp_path, order, suffix):
    images = [(f"k{number}.JPG", jpeg(number)) for number in range(3)]
    labels = [(f"k{number}.Cls", b"%d\n" % number) for number in range(3)]
    members = {
        "by kind": images + labels,
        "labels first": labels + images,
        "mixed": labels[::-1] + images[1:] + images[:1],
    }
    junk = [("README", b"x"), ("._k0.jpg", b"x"), ("folder/.DS_Store", b"x"), ("notes.txt", b"x")]
    write_tar(tmp_path / f"x{suffix}", junk + members[order])
    made = index_here(tmp_path)
    reader = ShardReader(str(tmp_path), made, "train", 1)
    assert len(reader) == 3
    for number in range(3):
        found = reader[number]
        assert np.array_equal(found.image, expected(int(found.key[1:]))) and found.label == int(found.key[1:])
    verify(str(tmp_path), num_workers=0)
    assert len(list(ShardSet(tmp_path, "train").blocks(1))) == 3


def test_splits_are_told_by_names(tmp_path):
    names = ["train/0.tar", "valid/0.tar", "x-test-00.tar", "sub/imagenet1k-validation-01.tar", "more.tar"]
    for name in names:
        write_tar(tmp_path / name, [("n01440764_1.jpg", jpeg(0))])
    made = index_here(tmp_path)
    found = {split: {shard.name for shard in shards} for split, shards in made.splits.items()}
    assert found == {"train": {names[0], names[4]}, "val": {names[1], names[3]}, "test": {names[2]}}


def test_modes_of_images_are_those_of_packing(tmp_path):
    contents = []
    for image in (noise((30, 20), channels=1), noise((20, 30)).convert("CMYK"), noise((20, 20)).convert("P")):
        with io.BytesIO() as stream:
            image.save(stream, "PNG" if image.mode == "P" else "JPEG")
            contents.append(stream.getvalue())
    write_tar(
        tmp_path / "x.tar", [(f"{number}.{'png' if number == 2 else 'jpg'}", c) for number, c in enumerate(contents)]
    )
    reader = ShardReader(str(tmp_path), index_here(tmp_path), "train", 1)
    for number, content in enumerate(contents):
        image = center_crop(standardise(Image.open(io.BytesIO(content)), 3), 16)
        assert np.array_equal(reader[number].image, np.asarray(image))


def test_labels_that_are_missing_or_mixed_are_refused(tmp_path):
    write_tar(tmp_path / "some" / "x.tar", [("a.jpg", jpeg(0)), ("a.cls", b"0"), ("b.jpg", jpeg(1))])
    with pytest.raises(ValueError, match="1 of 2 samples have no label at cls"):
        index_here(tmp_path / "some")
    assert index_here(tmp_path / "some", label="none").class_names == []
    write_tar(
        tmp_path / "mixed" / "x.tar", [("a.jpg", jpeg(0)), ("a.cls", b"0"), ("b.jpg", jpeg(1)), ("b.cls", b"cat")]
    )
    with pytest.raises(ValueError, match="numbers .* and words"):
        index_here(tmp_path / "mixed")
    write_tar(tmp_path / "below" / "x.tar", [("a.jpg", jpeg(0)), ("a.cls", b"-1")])
    with pytest.raises(ValueError, match="labels at cls are -1 to -1"):
        index_here(tmp_path / "below")
    with pytest.raises(ValueError, match=r"must be cls, json\.FIELD, key or none"):
        index_here(tmp_path / "below", label="txt")


def test_a_split_without_labels_is_left_out(tmp_path, capsys):
    ids = ("n01440764", "n01443537")
    write_tar(tmp_path / "train_images_0.tar.gz", [(f"{ids[n % 2]}_{n}_{ids[n % 2]}.JPEG", jpeg(n)) for n in range(4)])
    write_tar(tmp_path / "val_images.tar.gz", [(f"ILSVRC2012_val_{n}_{ids[n]}.JPEG", jpeg(n)) for n in range(2)])
    write_tar(tmp_path / "test_images.tar.gz", [(f"ILSVRC2012_test_{n}.JPEG", jpeg(n)) for n in range(2)])
    made = index_here(tmp_path)
    assert made.class_names == list(ids) and list(made.splits) == ["train", "val"]
    assert "left out: the split test, which has no label at key" in capsys.readouterr().out
    assert labels_of(tmp_path, "val") == list(ids)
    verify(str(tmp_path), num_workers=0)
    (tmp_path / "index.json").unlink()
    assert list(index_here(tmp_path, label="none").splits) == ["test", "train", "val"]


def test_labels_of_a_part_are_no_labels(tmp_path):
    members = [(f"{n}.jpg", jpeg(n)) for n in range(2)]
    write_tar(tmp_path / "json" / "x.tar", [*members, ("0.json", b'{"label": 1}'), ("1.json", b"{}")])
    with pytest.raises(ValueError, match=r"1 of 2 samples have no label at json\.label"):
        index_here(tmp_path / "json")
    write_tar(tmp_path / "key" / "x.tar", [("n01440764_1.jpg", jpeg(0)), ("photo.jpg", jpeg(1))])
    with pytest.raises(ValueError, match="1 of 2 samples have no label at key"):
        index_here(tmp_path / "key")
    write_tar(tmp_path / "train" / "train.tar", members)
    write_tar(tmp_path / "train" / "val.tar", [*members, ("0.cls", b"0"), ("1.cls", b"1")])
    with pytest.raises(ValueError, match="2 of 4 samples have no label at cls"):
        index_here(tmp_path / "train")


def test_the_image_is_the_one_with_the_plain_name(tmp_path, capsys):
    members = [
        ("a.jpg", jpeg(0)),
        ("a.seg.png", jpeg(1)),
        ("b.JPG", jpeg(2)),
        ("b.png", jpeg(3)),
        ("c.thumb.jpg", jpeg(4)),
    ]
    write_tar(tmp_path / "x.tar", members)
    made = index_here(tmp_path)
    assert "left out: 1 samples without one image, such as b of x.tar" in capsys.readouterr().out
    reader = ShardReader(str(tmp_path), made, "train", 1)
    assert [reader[n].key for n in range(len(reader))] == ["a", "c"]
    assert np.array_equal(reader[0].image, expected(0)) and np.array_equal(reader[1].image, expected(4))
    verify(str(tmp_path), num_workers=0)


@pytest.mark.parametrize("format", ["BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_images_may_be_of_any_format(tmp_path, format):
    with io.BytesIO() as stream:
        picture(1).save(stream, format)
        content = stream.getvalue()
    write_tar(tmp_path / "x.tar", [(f"a.{format.lower()}", content)])
    reader = ShardReader(str(tmp_path), index_here(tmp_path), "train", 1)
    image = center_crop(standardise(Image.open(io.BytesIO(content)), 3), 16)
    assert np.array_equal(reader[0].image, np.asarray(image))


@pytest.mark.parametrize("name", ["train (1).tar", "\u00e9t\u00e9/images & more.tar", "a'b;c.tar"])
def test_shards_may_have_any_name(tmp_path, name):
    write_tar(tmp_path / name, [("n01440764_\u00e9.jpg", jpeg(0))])
    made = index_here(tmp_path)
    assert [shard.name for shard in made.shards("train")] == [name]
    assert ShardReader(str(tmp_path), made, "train", 1)[0].key == "n01440764_\u00e9"
    verify(str(tmp_path), num_workers=0)


def test_grey_shards_stay_grey(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1))])
    index_here(tmp_path, image_channels=1)
    assert pack_here(Shards(str(tmp_path)), tmp_path / "out").image_channels == 1
    assert pack_here(Shards(str(tmp_path)), tmp_path / "rgb", image_channels=3).image_channels == 3


def test_names_of_classes_may_be_given(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nbird\n")
    write_tar(tmp_path / "numbers" / "x.tar", [("a.jpg", jpeg(0)), ("a.cls", b"1")])
    assert index_here(tmp_path / "numbers", class_names=str(names)).class_names == ["cat", "dog", "bird"]
    write_tar(tmp_path / "words" / "x.tar", [("a.jpg", jpeg(0)), ("a.cls", b"bird")])
    made = index_here(tmp_path / "words", class_names=str(names))
    assert ShardReader(str(tmp_path / "words"), made, "train", 1)[0].label == 2
    (tmp_path / "words" / "index.json").unlink()
    names.write_text("cat\n")
    with pytest.raises(ValueError, match="does not name the class 'bird'"):
        index_here(tmp_path / "words", class_names=str(names))
    with pytest.raises(ValueError, match="no sample has a label for which .*names.txt has a name"):
        index_here(tmp_path / "words", class_names=str(names), label="none")
    with pytest.raises(ValueError, match="nowhere.txt is no text file"):
        index_here(tmp_path / "words", class_names=str(tmp_path / "nowhere.txt"))


def test_what_is_not_there_is_said(tmp_path, capsys):
    directory = write_hub_shards(tmp_path / "hub")
    (directory / "tiny-train-0001.tar").unlink()
    assert index_here(directory).num_samples("train") == 4
    assert "left out: 1 listed shards that are not there, such as tiny-train-0001.tar" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has an index already; delete"):
        index_here(directory)
    with pytest.raises(ValueError, match="holds no shards"):
        index_here(tmp_path / "nowhere")
    write_tar(tmp_path / "broken" / "x.tar", [("a.jpg", jpeg(0))])
    whole = (tmp_path / "broken" / "x.tar").read_bytes()
    (tmp_path / "broken" / "x.tar").write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"cannot read shard x\.tar of .*Fetch it again"):
        index_here(tmp_path / "broken")
    assert not (tmp_path / "broken" / "index.json").exists()


def test_a_broken_image_is_named_by_every_reader(tmp_path, capsys):
    write_tar(tmp_path / "x.tar", [("n01440764_1.JPEG", jpeg(0)[:300]), ("n01440764_2.JPEG", jpeg(1))])
    made = index_here(tmp_path)
    with pytest.raises(BrokenSampleError, match=r"shard x\.tar: sample 'n01440764_1' cannot be read"):
        ShardReader(str(tmp_path), made, "train", 1)[0]
    with pytest.raises(ValueError, match=r"x\.tar: sample 'n01440764_1'"):
        list(ShardSet(tmp_path, "train").blocks(2))
    with pytest.raises(ValueError, match="1 problems"):
        verify(str(tmp_path), num_workers=0)
    assert "x.tar: sample n01440764_1: " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"x\.tar: n01440764_1 \("):
        pack_here(Shards(str(tmp_path)), tmp_path / "out")


def test_shards_are_packed_again_to_a_fixed_size(tmp_path):
    directory = write_hub_shards(tmp_path / "hub")
    made = index_here(directory)
    packed = pack_here(Shards(str(directory)), tmp_path / "out", 8, shard_size=3)
    assert packed.raw is None and packed.class_names == made.class_names
    assert {split: packed.num_samples(split) for split in packed.splits} == {"train": 7, "val": 2}
    found = {(members["cls"].tobytes(), decode(members).tobytes()) for _, members in samples(tmp_path / "out")}
    numbers = [0, 1, 2, 3, 10, 11, 12]
    assert found == {(b"%d" % (number % 10 % 2), expected(number, 8).tobytes()) for number in numbers}
    keys = [key for key, _ in samples(tmp_path / "out")]
    assert keys != sorted(keys) and len(set(keys)) == 7
    verify(str(tmp_path / "out"), num_workers=0)
    split = pack_here(Shards(str(tmp_path / "out"), val_fraction=0.0), tmp_path / "again", 8)
    assert split.num_samples("train") == 7
    with pytest.raises(ValueError, match="leave out val_fraction"):
        Shards(str(directory), val_fraction=0.5).listing(0)


@pytest.mark.integration  # on spawned workers
def test_indexing_in_processes_gives_the_same(tmp_path):
    directory = write_hub_shards(tmp_path / "hub")
    one = index_here(directory)
    Path(directory, "index.json").unlink()
    assert index_here(directory, num_workers=2) == one
