import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalear.data.imaging import encode
from scalear.data.index import DatasetIndex, LatentInfo
from scalear.data.reader import open_shard
from scalear.data.shards import ShardFile
from scalear.data.verify import stats, verify

EMBEDDED = Path(__file__).parents[2] / "data" / "fashion-mnist"
MOMENTS = (4, 2, 2)


def image_members(seed, label, size=8, channels=1):
    shape = (size, size) if channels == 1 else (size, size, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return {"png": encode(Image.fromarray(pixels), "png", 0), "cls": str(label).encode()}


def flipped(content, position):
    content = bytearray(content)
    content[position] ^= 0xFF
    return bytes(content)


def flip_byte(path, position):
    path.write_bytes(flipped(path.read_bytes(), position))


def npy(array, version=(1, 0)):
    with io.BytesIO() as stream:
        np.lib.format.write_array(stream, array, version)
        return stream.getvalue()


def block_members(number, count):
    moments = np.random.default_rng(number).normal(size=(2, count, *MOMENTS)).astype(np.float16)
    return {
        "moments.npy": npy(moments[0]),
        "flipped.npy": npy(moments[1]),
        "labels.npy": npy(np.arange(count, dtype=np.int64) % 2),
        "keys.json": json.dumps([f"{number}-{row}" for row in range(count)]).encode(),
    }


def write_dataset(directory, shards, latents=None, **changes):
    """`shards` is a list over shards of (key, members, number of samples)."""
    directory.mkdir()
    written = []
    for number, samples in enumerate(shards):
        with ShardFile(directory / f"train-{number}.tar") as shard:
            for sample in samples:
                shard.write(*sample)
        written.append(shard.result)
    kind = "latents" if latents else "images"
    index = DatasetIndex("tiny", kind, 8, 1, ["cat", "dog"], {"train": written}, latents)
    dataclasses.replace(index, **changes).save(directory)
    return directory


@pytest.fixture
def images(tmp_path):
    shards = [[(f"{shard}-{row}", image_members(row, row % 2), 1) for row in range(5)] for shard in range(3)]
    return write_dataset(tmp_path / "images", shards)


LATENTS = LatentInfo("some.Tokenizer", "f" * 64, MOMENTS, "float16", 4)


@pytest.fixture
def latents(tmp_path):
    shards = [
        [(f"{shard}-{row}", block_members(row, count), count) for row, count in enumerate((4, 4, 2))]
        for shard in range(2)
    ]
    return write_dataset(tmp_path / "latents", shards, LATENTS)


def problems_of(directory, capsys):
    with pytest.raises(ValueError) as error:
        verify(str(directory), num_workers=0)
    return capsys.readouterr().out.splitlines(), str(error.value)


@pytest.mark.parametrize("kind", ["images", "latents"])
def test_sound_datasets_pass(kind, request, capsys):
    directory = request.getfixturevalue(kind)
    verify(str(directory), num_workers=0)
    found = {"images": "3 shards with 15 samples", "latents": "2 shards with 20 samples"}[kind]
    assert capsys.readouterr().out == f"{directory}: {found} are sound\n"


@pytest.mark.integration
def test_embedded_dataset(capsys):
    verify(str(EMBEDDED), num_workers=0)
    assert "14 shards with 14,000 samples are sound" in capsys.readouterr().out
    index = DatasetIndex.load(EMBEDDED)
    assert (index.num_samples("train"), index.num_samples("val")) == (12_000, 2_000)
    assert (index.image_size, index.image_channels, index.num_classes) == (32, 1, 10)
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 12e6
    stats(str(EMBEDDED), num_workers=0)
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-2:] for row in table[-10:]] == [["1,200", "200"]] * 10
    assert table[-1] == ["9", "Ankle", "boot", "1,200", "200"]


@pytest.mark.parametrize("kind", ["images", "latents"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "broken after"),
        (lambda path: path.write_bytes(b"no tar at all" * 100), "broken after"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9000]), "SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:1300]), "sample 1-0: has"),
        (lambda path: flip_byte(path, -1), "SHA-256"),
        (lambda path: flip_byte(path, 1540), "sample 1-0: "),
    ],
    ids=["missing", "empty", "not a tar", "truncated", "truncated in a sample", "bit rot at the end", "bit rot"],
)
def test_damaged_shard_is_named_and_no_other(kind, damage, message, request, capsys):
    directory = request.getfixturevalue(kind)
    damage(directory / "train-1.tar")
    lines, error = problems_of(directory, capsys)
    assert all(line.startswith("train-1.tar: ") for line in lines)
    assert any(message in line for line in lines), lines
    assert "in 1 shards (train-1.tar)" in error


def test_every_damaged_shard_is_named(images, capsys):
    (images / "train-0.tar").unlink()
    flip_byte(images / "train-2.tar", 1540)
    (images / "train-9.tar").touch()
    lines, error = problems_of(images, capsys)
    assert "in 3 shards (train-0.tar, train-2.tar, train-9.tar)" in error
    assert "train-9.tar: not in the index" in lines[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, r"sample 0-0: width, height and channels are (8, 8, 1), the index says (16, 16, 1)"),
        ({"image_channels": 3}, "the index says (8, 8, 3)"),
        ({"class_names": ["cat"]}, "sample 0-1: label 1 is out of range [0, 0]"),
    ],
)
def test_index_that_disagrees(images, capsys, changes, message):
    dataclasses.replace(DatasetIndex.load(images), **changes).save(images)
    lines, _ = problems_of(images, capsys)
    assert any(message in line for line in lines), lines


def test_wrong_counts(images, capsys):
    index = DatasetIndex.load(images)
    shards = [dataclasses.replace(shard, num_samples=6) for shard in index.shards("train")]
    dataclasses.replace(index, splits={"train": shards}).save(images)
    lines, _ = problems_of(images, capsys)
    assert lines == [f"train-{number}.tar: holds 5 samples, the index says 6" for number in range(3)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cls": b"0"}, "has 0 images"),
        (image_members(0, 0) | {"jpg": b""}, "has 2 images"),
        ({"png": image_members(0, 0)["png"]}, "has no label"),
        (image_members(0, "cat"), "invalid literal"),
        (image_members(0, -1), "out of range"),
        (image_members(0, 0) | {"png": image_members(0, 0)["png"][:-40]}, "sample bad"),
        (
            image_members(0, 0) | {"png": flipped(image_members(0, 0)["png"], 60)},
            "sample bad: OSError: broken data stream",
        ),
        (image_members(0, 0) | {"png": b"GIF89a"}, "sample bad: it is no image: 6 bytes"),
    ],
)
def test_bad_samples_are_named(tmp_path, capsys, members, message):
    good = [(f"good-{row}", image_members(row, 1), 1) for row in range(3)]
    directory = write_dataset(tmp_path / "data", [[*good, ("bad", members, 1)], good])
    lines, _ = problems_of(directory, capsys)
    assert len(lines) == 1 and lines[0].startswith("train-0.tar: sample bad: ") and message in lines[0]


def test_repeated_keys_are_named(tmp_path, capsys):
    good = [(key, image_members(0, 1), 1) for key in ("a", "b", "a")]
    lines, _ = problems_of(write_dataset(tmp_path / "data", [good]), capsys)
    assert lines == ["train-0.tar: sample a: its key comes twice"]


WHOLE = block_members(0, 4)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (WHOLE | {"moments.npy": npy(np.zeros((4, *MOMENTS), np.float32))}, "moments.npy is float32"),
        (WHOLE | {"flipped.npy": npy(np.zeros((3, *MOMENTS), np.float16))}, "flipped.npy is float16 (3, 4, 2, 2)"),
        (WHOLE | {"moments.npy": npy(np.full((4, *MOMENTS), np.nan, np.float16))}, "not finite"),
        (WHOLE | {"labels.npy": npy(np.zeros(4, np.int32))}, "labels.npy is int32 (4,), must be int64 (4,)"),
        (WHOLE | {"labels.npy": npy(np.full(4, 2))}, "label 2 is out of range [0, 1]"),
        (WHOLE | {"keys.json": b'["a", "b", "c"]'}, "labels.npy is int64 (4,), must be int64 (3,)"),
        (WHOLE | {"keys.json": b'{"a": 1}'}, "keys.json must be a list of 1 to 4 names"),
        (block_members(0, 5), "keys.json must be a list of 1 to 4 names"),
        (WHOLE | {"moments.npy": npy(np.asfortranarray(np.zeros((4, *MOMENTS), np.float16)))}, "in Fortran order"),
        (WHOLE | {"moments.npy": npy(np.zeros((4, *MOMENTS), np.float16), (2, 0))}, "has .npy format (2, 0)"),
        ({name: WHOLE[name] for name in ("moments.npy", "labels.npy", "keys.json")}, "has no flipped.npy"),
        (WHOLE | {"moments.npy": WHOLE["moments.npy"][:-8]}, "sample bad"),
        (block_members(0, 3), "only the last may be small"),
    ],
)
def test_bad_blocks_are_named(tmp_path, capsys, members, message):
    count = 3 if "small" in message else 4
    blocks = [("bad", members, count), ("good", block_members(1, 4), 4)]
    lines, _ = problems_of(write_dataset(tmp_path / "data", [blocks], LATENTS), capsys)
    assert len(lines) == 1 and lines[0].startswith("train-0.tar: ") and message in lines[0] and "bad" in lines[0]
    if "finite" not in message and "label 2" not in message:  # which are not looked for when a shard is opened
        index = DatasetIndex.load(tmp_path / "data")
        with pytest.raises(ValueError, match="cannot read shard train-0.tar"):
            open_shard(str(tmp_path / "data"), index, index.shards("train")[0])


def test_stats_of_latents_and_of_broken_shards(latents, capsys):
    stats(str(latents), num_workers=0)
    printed = capsys.readouterr().out
    assert "moments 4x2x2 float16 of some.Tokenizer ffffffffffff" in printed
    assert [line.split()[-1] for line in printed.splitlines()[-2:]] == ["10", "10"]
    (latents / "train-1.tar").unlink()
    with pytest.raises(ValueError, match="cannot read train-1.tar"):
        stats(str(latents), num_workers=0)
