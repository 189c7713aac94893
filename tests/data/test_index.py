import dataclasses
import json

import pytest

from scalear.data.index import INDEX_NAME, DatasetIndex, LatentInfo, Shard, shard_url

IMAGES = DatasetIndex(
    "pictures", "images", 32, 1, ["cat", "dog"], {"train": [Shard("a.tar", 3, "00"), Shard("b.tar.gz", 2, "11")]}
)
LATENTS = dataclasses.replace(
    IMAGES, kind="latents", latents=LatentInfo("some.Tokenizer", "abc", (8, 4, 4), "float16", 256)
)


@pytest.mark.parametrize("index", [IMAGES, LATENTS])
def test_round_trip(tmp_path, index):
    index.save(tmp_path)
    assert DatasetIndex.load(tmp_path) == index
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_NAME]
    assert json.loads((tmp_path / INDEX_NAME).read_text())["schema_version"] == 1


def test_counts():
    assert IMAGES.num_samples("train") == 5
    assert IMAGES.num_classes == 2
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train'\]"):
        IMAGES.num_samples("test")


def test_shard_url(tmp_path):
    assert shard_url(tmp_path, Shard("a.tar", 1, "")) == f"{tmp_path}/a.tar"
    assert shard_url(tmp_path, Shard("https://example.org/a.tar", 1, "")) == "https://example.org/a.tar"


def test_failed_save_keeps_the_old_index(tmp_path):
    IMAGES.save(tmp_path)
    with pytest.raises(TypeError):
        dataclasses.replace(IMAGES, name=object()).save(tmp_path)
    assert DatasetIndex.load(tmp_path) == IMAGES


def test_missing_index_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"index\.json.*was never finished.*scalear data pack"):
        DatasetIndex.load(tmp_path)


def edited(**changes):
    return {"schema_version": 1} | dataclasses.asdict(IMAGES) | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "schema version None"),
        (edited(schema_version=99), "schema version 99"),
        (edited(colour=1), "colour"),
        (edited(kind="sounds"), "kind is 'sounds'"),
        (edited(kind="latents"), "latents is None"),
        (edited(image_channels=4), "image_channels is 4"),
        (edited(image_size="32"), "image_size is '32'"),
        (edited(class_names="cat"), "class_names is 'cat'"),
        (edited(splits=None), "not a valid index"),
        (edited(splits={"train": [{"name": "a.tar"}]}), "num_samples"),
        (edited(splits={"train": [{"name": "a.tar", "num_samples": 0, "sha256": ""}]}), "num_samples 0"),
        (edited(splits={"train": [{"name": "a.tar", "num_samples": 1, "sha256": ""}] * 2}), "listed twice"),
        (edited(splits={"train": [{"name": "pipe:rm x", "num_samples": 1, "sha256": ""}]}), "plain URL"),
        (edited(splits={"train": [{"name": "http://x/';rm x'", "num_samples": 1, "sha256": ""}]}), "plain URL"),
        (edited(splits={"train": [{"name": "../a.tar", "num_samples": 1, "sha256": ""}]}), "plain URL"),
        (edited(splits={"train": [{"name": "a\n.tar", "num_samples": 1, "sha256": ""}]}), "plain URL"),
        (edited(splits={"train": [{"name": "http://x/a b.tar", "num_samples": 1, "sha256": ""}]}), "plain URL"),
        (edited(splits={"train": [{"name": "/a.tar", "num_samples": 1, "sha256": ""}]}), "plain URL"),
    ],
)
def test_bad_index_is_refused(tmp_path, content, message):
    (tmp_path / INDEX_NAME).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        DatasetIndex.load(tmp_path)
    assert str(tmp_path / INDEX_NAME) in str(error.value)
