import dataclasses
import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import (
    BLOCK_SIZE,
    MOMENTS_SHAPE,
    TRAIN_SIZES,
    image_of,
    moments_of,
    png,
    sample,
    write_images,
    write_latents,
)

from scalear.data.index import DatasetIndex, LatentInfo
from scalear.data.latents import LatentShardWriter, write_latent_index
from scalear.data.reader import BrokenSampleError, ShardReader


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("cached", [False, True])
def test_images_come_back_by_index(tmp_path: Path, suffix: str, cached: bool):
    data = tmp_path / "data"
    cache_dir = str(tmp_path / "cache") if cached else None
    reader = ShardReader(str(data), write_images(data, suffix=suffix), "train", max_open=2, cache_dir=cache_dir)
    for number in [21, 0, 4, 5, 11, 12, 15, 16, *range(22)]:  # both sides of every seam between shards
        found = reader[number]
        np.testing.assert_array_equal(found.image[..., 0], image_of(number))
        assert (found.label, found.key) == (number % 3, f"image{number:03d}")
    assert len(reader) == 22
    assert len(list((tmp_path / "cache").glob("*"))) == (4 if cached and suffix == ".tar.gz" else 0)


@pytest.mark.integration  # by a process of curl
def test_shards_are_read_from_a_web_server(tmp_path: Path):
    index = write_images(tmp_path / "data")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "data"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        remote = [dataclasses.replace(shard, name=url + shard.name) for shard in index.splits["train"]]
        index = dataclasses.replace(index, splits={"train": remote})
        reader = ShardReader(str(tmp_path), index, "train", max_open=4, cache_dir=str(tmp_path / "cache"))
        np.testing.assert_array_equal(reader[13].image[..., 0], image_of(13))
        server.shutdown()
    np.testing.assert_array_equal(reader[14].image[..., 0], image_of(14))  # the copy is used
    with pytest.raises(ValueError, match="train-0.tar"):
        reader[0]


@pytest.mark.parametrize("world_size", [1, 2])
def test_latents_come_back_as_written(tmp_path: Path, world_size: int):
    index = write_latents(tmp_path / "latents", write_images(tmp_path / "images"), world_size=world_size)
    assert DatasetIndex.load(tmp_path / "latents") == index
    for split, first, size in (("train", 0, 22), ("val", 100, 7)):
        reader = ShardReader(str(tmp_path / "latents"), index, split, max_open=3)
        assert len(reader) == size
        for number in range(size):
            found = reader[number]
            assert found.key == f"image{first + number:03d}" and found.label == (first + number) % 3
            np.testing.assert_array_equal(found.moments, moments_of([first + number])[0])
            np.testing.assert_array_equal(found.flipped, moments_of([first + number], flipped=True)[0])
            assert found.moments.dtype == np.float16 and not found.moments.flags.owndata  # a view, not a copy


def test_moments_that_float16_cannot_hold_are_refused(tmp_path: Path):
    writer = LatentShardWriter(tmp_path, "train", block_size=BLOCK_SIZE)
    moments = moments_of([0, 1])
    moments[1, 0, 0, 0] = 1e5
    with pytest.raises(ValueError, match="'b'.*float16"):
        writer.add(moments_of([0, 1]), moments, torch.tensor([0, 1]), ["a", "b"])


def test_unfinished_latents_leave_neither_shard_nor_index(tmp_path: Path):
    source = write_images(tmp_path / "images")
    writer = LatentShardWriter(tmp_path / "latents", "train", block_size=2)
    writer.add(moments_of([0, 1]), moments_of([0, 1]), torch.tensor([0, 1]), ["a", "b"])
    assert not list((tmp_path / "latents").glob("*.tar"))
    writer.abort()
    assert not list((tmp_path / "latents").iterdir())

    info = LatentInfo("tests.Tokenizer", "f00d", MOMENTS_SHAPE, "float16", 2)
    with pytest.raises(ValueError, match="0 latents of split 'train' were written, the images are 22"):
        write_latent_index(tmp_path / "latents", source, info, [{"train": []}])
    assert not (tmp_path / "latents" / "index.json").exists()


def test_a_finished_dataset_is_not_overwritten(tmp_path: Path):
    write_images(tmp_path)
    with pytest.raises(ValueError, match="finished dataset"):
        LatentShardWriter(tmp_path, "train")


def _missing(path: Path) -> None:
    path.unlink()


def _cut_in_a_member(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 512 + 40])


def _cut_between_members(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: min(4 * 1024, len(content) - 20)])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    path.write_bytes(content)


def _other_shard(path: Path) -> None:
    path.write_bytes(path.with_name(path.name.replace("train-1", "train-2")).read_bytes())


@pytest.mark.parametrize("kind", ["images", "latents"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("damage", [_missing, _cut_in_a_member, _cut_between_members, _empty, _overwritten])
def test_a_broken_shard_is_named(tmp_path: Path, damage, suffix: str, kind: str):
    index = write_images(tmp_path, suffix=suffix)
    if kind == "latents":
        index = write_latents(tmp_path / "latents", index)
    directory = tmp_path / "latents" if kind == "latents" else tmp_path
    shard = index.splits["train"][1]
    damage(directory / shard.name)
    reader = ShardReader(str(directory), index, "train", max_open=4)
    with pytest.raises(ValueError, match=shard.name):
        reader[TRAIN_SIZES[0] + 2]
    reader[0]  # the others are fine


def test_a_shard_that_disagrees_with_the_index_is_named(tmp_path: Path):
    index = write_images(tmp_path)
    _other_shard(tmp_path / "train-1.tar")
    with pytest.raises(ValueError, match="train-1.tar .* holds 4 samples, its index says 7"):
        ShardReader(str(tmp_path), index, "train", max_open=4)[6]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (sample(7) | {"png": png(image_of(7))[:-30]}, "cannot be read"),
        (sample(7) | {"png": png(image_of(7)[:4])}, "width, height"),
        (sample(7) | {"cls": b"3"}, "label 3"),
        (sample(7) | {"cls": b"shoe"}, "invalid literal"),
        ({"__key__": "image007", "png": png(image_of(7))}, "no label"),
        ({"__key__": "image007", "txt": b"a shoe", "cls": b"1"}, "has 0 images"),
    ],
)
def test_a_broken_sample_is_named(tmp_path: Path, broken: dict, message: str):
    index = write_images(tmp_path, replaced={7: broken})
    reader = ShardReader(str(tmp_path), index, "train", max_open=4)
    with pytest.raises(BrokenSampleError, match=f"train-1.tar.*'image007'.*{message}"):
        reader[7]
    assert reader[8].key == "image008"
