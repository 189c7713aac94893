import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from scalear.data.index import DatasetIndex
from scalear.data.shards import ShardFile
from scalear.evaluation.image_set import ArraySet, FolderSet, SampleSet, ShardSet, image_set
from scalear.evaluation.images import save_samples


def write_shards(folder, images, labels, class_names=("a", "b", "c")):
    with ShardFile(folder / "train-0.tar") as shard:
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            stream = io.BytesIO()
            Image.fromarray(image.squeeze()).save(stream, format="PNG", compress_level=0)
            shard.write(f"{place:04d}", {"png": stream.getvalue(), "cls": b"%d" % label})
    *_, side, channels = images.shape
    DatasetIndex("toys", "images", side, channels, list(class_names), {"train": [shard.result]}).save(folder)


def write_folder(folder, images, names):
    for image, name in zip(images, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / name)
    return folder


def grey(values, side=4):
    return np.full((len(values), side, side, 1), np.array(values)[:, None, None, None], np.uint8)


def test_real_images_come_from_shards_in_equal_shares(tmp_path):
    labels = [0, 0, 0, 0, 1, 1, 2, 0]
    write_shards(tmp_path, grey(range(8)), labels)
    whole = ShardSet(tmp_path, "train").load()
    assert whole.images.shape == (8, 4, 4, 1) and whole.labels.tolist() == labels and whole.labels.dtype == np.int64
    part = ShardSet(tmp_path, "train", 3).load()
    assert part.images[:, 0, 0, 0].tolist() == [0, 4, 6] and part.labels.tolist() == [0, 1, 2]
    # Class 2 has one image only: the first spare one fills the gap.
    assert ShardSet(tmp_path, "train", 6).load().images[:, 0, 0, 0].tolist() == [0, 1, 4, 5, 6, 2]
    assert "toys train" in whole.name and whole.name != part.name
    with pytest.raises(ValueError, match="holds 8"):
        ShardSet(tmp_path, "train", 9)
    (tmp_path / "train-0.tar").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="train-0.tar"):
        ShardSet(tmp_path, "train").load()


def test_every_set_comes_in_blocks_that_need_not_fit_in_memory(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1200, 64, 64, 3), np.uint8)  # 15 MB
    whole = ArraySet(images, np.arange(1200) % 3, "whole")
    save_samples(tmp_path / "samples.npz", images, whole.labels)
    write_shards(tmp_path, images, whole.labels)

    sets = {2: SampleSet(tmp_path / "samples.npz", num_classes=2), 3: ShardSet(tmp_path, "train", 1200)}
    tracemalloc.start()
    for num_classes, found in sets.items():
        assert len(found) == 1200
        for block, expected in zip(found.blocks(50), whole.blocks(50), strict=True):
            assert np.array_equal(block.images, expected.images) and block.labels.dtype == np.int64
            assert np.array_equal(block.labels, np.where(expected.labels < num_classes, expected.labels, -1))
    assert tracemalloc.get_traced_memory()[1] < 6e6
    tracemalloc.stop()


def test_every_set_gives_any_part_of_itself(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), np.uint8), np.arange(11) % 3
    save_samples(tmp_path / "samples.npz", images, labels)
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", images, labels)
    write_folder(tmp_path / "folder", images, [f"{place}.png" for place in range(11)])
    sets = [
        ArraySet(images, labels, "whole"),
        SampleSet(tmp_path / "samples.npz"),
        ShardSet(tmp_path / "shards", "train"),
        FolderSet(tmp_path / "folder"),
    ]
    for found in sets:
        assert len(found) == 11 and found.image_shape == (6, 6, 3) and len(found.fingerprint()) == 64
        for rows in (range(0, 11), range(3, 8), range(8, 11), range(4, 4)):
            blocks = list(found.blocks(2, rows))
            assert [len(block.labels) for block in blocks] == [2] * (len(rows) // 2) + [1] * (len(rows) % 2)
            if rows:
                assert np.array_equal(np.concatenate([block.images for block in blocks]), images[rows])
                if found.labelled:
                    assert np.array_equal(np.concatenate([block.labels for block in blocks]), labels[rows])
    assert [found.labelled for found in sets] == [True, True, True, False]


def test_a_sample_file_may_lack_labels(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=grey([1, 2]))
    found = SampleSet(tmp_path / "samples.npz")
    assert not found.labelled and found.load().labels.tolist() == [-1, -1]


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"\(2, 3, 8, 8\).* must be uint8 \(N, H, W, 1 or 3\)"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "float32 images"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))}, "Fortran order: True"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"shape \(0, 8, 8, 3\)"),
        ({"arr_0": grey([1, 2]), "arr_1": np.zeros(3, np.int64)}, r"2 images, but int64 labels of shape \(3,\)"),
        ({"arr_0": grey([1, 2]), "arr_1": np.zeros(2)}, "float64 labels"),
        ({"x": np.zeros(1)}, r"no images \(arr_0\), only \['x'\]"),
    ],
)
def test_sample_files_of_another_layout_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "samples.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        SampleSet(tmp_path / "samples.npz")


def test_damaged_sample_files_are_refused(tmp_path):
    path = tmp_path / "samples.npz"
    save_samples(path, np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8), np.zeros(40, np.int64))
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:9000])
    with pytest.raises(ValueError, match="samples.npz is not a sample set"):
        SampleSet(path)
    content[9000:9100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="samples.npz is damaged"):
        list(SampleSet(path).blocks(10))
    with pytest.raises(ValueError, match="no sample set at .*missing.npz"):
        SampleSet(tmp_path / "missing.npz")


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    write_folder(tmp_path, grey([1, 2, 10, 3]), ["a/1.png", "a/2.png", "a/10.png", "b/0.png"])
    found = FolderSet(tmp_path)
    assert found.image_shape == (4, 4, 1) and found.load().images[:, 0, 0, 0].tolist() == [1, 2, 10, 3]
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(tmp_path / "c.png")
    found = FolderSet(tmp_path)
    assert found.image_shape == (4, 4, 3) and found.load().images[:, 0, 0].tolist()[3:] == [[3] * 3, [7] * 3]


def test_a_folder_of_several_sizes_or_with_a_broken_file_is_refused(tmp_path):
    write_folder(tmp_path, grey([1, 2, 3]), ["1.png", "2.png", "3.png"])
    write_folder(tmp_path, grey([1], side=5), ["odd.png"])
    with pytest.raises(ValueError, match="2 sizes: most are 4x4, odd.png is 5x5"):
        FolderSet(tmp_path)
    (tmp_path / "odd.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="odd.png is no image"):
        FolderSet(tmp_path)
    (tmp_path / "odd.png").unlink()
    for name in ("odd.png", "odd.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4), np.uint8)).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
        with pytest.raises(ValueError, match=f"{name} (is no image that can|cannot) be read"):
            FolderSet(tmp_path).load()
        (tmp_path / name).unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        FolderSet(tmp_path / "empty")


def test_commands_are_pointed_at_files_folders_and_shards(tmp_path):
    write_shards(tmp_path, grey(range(3)), [0, 1, 2])
    assert isinstance(image_set(str(tmp_path), "train"), ShardSet)
    with pytest.raises(ValueError, match="no split 'val'"):
        image_set(str(tmp_path), "val")
    assert isinstance(image_set(str(write_folder(tmp_path / "folder", grey([1]), ["1.png"])), "val"), FolderSet)
    save_samples(tmp_path / "samples.npz", grey([1]), np.zeros(1, np.int64))
    assert isinstance(image_set(str(tmp_path / "samples.npz"), "val"), SampleSet)
    with pytest.raises(ValueError, match="nowhere"):
        image_set(str(tmp_path / "nowhere"), "val")
