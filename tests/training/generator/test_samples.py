"""Which images are sampled, and the file that collects them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from scalear.evaluation.images import load_samples
from scalear.training.generator.samples import SampleRequest, SampleStore


def make_trainer(**settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", **quiet, **settings)


def test_every_class_can_have_a_number_of_its_own():
    assert SampleRequest(num_per_class={2: 3, 0: 1}).labels(4).tolist() == [2, 0, 2, 2]
    assert SampleRequest(num_per_class={4: 2}).labels(4).tolist() == [4, 4]  # the null class
    assert SampleRequest(num_per_class=1, classes=[3, 1]).labels(4).tolist() == [3, 1]
    with pytest.raises(ValueError, match="label 5 is out of range"):
        SampleRequest(num_per_class={5: 1}).labels(4)
    with pytest.raises(ValueError, match="leave out classes"):
        SampleRequest(num_per_class={1: 1}, classes=[1])
    for counts in (0, {}, {1: 0}):
        with pytest.raises(ValueError, match="num_per_class and batch_size must be at least 1"):
            SampleRequest(num_per_class=counts)


def test_every_part_of_a_sample_set_has_all_classes_alike():
    labels = SampleRequest(num_per_class=50).labels(1000)
    assert labels.bincount().tolist() == [50] * 1000
    for split in labels.split(5000):
        assert split.bincount().tolist() == [5] * 1000
    for length in (1, 999, 1000, 12_345):
        counts = labels[:length].bincount(minlength=1000)
        assert counts.max() - counts.min() <= 1
    assert SampleRequest(num_per_class=2, classes=[7, 3]).labels(10).tolist() == [7, 3, 7, 3]
    assert SampleRequest(num_per_class=3).labels(0).tolist() == [0, 0, 0]


def test_images_land_at_their_places_in_any_order(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    store = SampleStore(tmp_path, torch.arange(7) % 2, make_trainer())
    for part in ([5, 6], [0, 3, 1], [4, 2]):
        store.add(torch.tensor(part), torch.from_numpy(images[part]).permute(0, 3, 1, 2))
    store.close(SampleRequest())
    written, labels = load_samples(tmp_path / "samples.npz")
    assert np.array_equal(written, images) and labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "samples.npz"]


@pytest.mark.parametrize("limit", [{"limit_predict_batches": 1}, {"limit_predict_batches": 0.5}, {"fast_dev_run": 2}])
def test_no_part_of_a_sample_set_is_left_black(tmp_path, limit):
    with pytest.raises(ValueError, match="limit_predict_batches .* samples.num_per_class"):
        SampleStore(tmp_path, torch.zeros(4), make_trainer(**limit))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a file system that is smaller than its files may be")
def test_a_disk_that_is_too_small_is_noticed_before_sampling(tmp_path):
    folder = Path("/dev/shm") / tmp_path.name
    too_many = shutil.disk_usage("/dev/shm").total // 2**20 + 1
    store = SampleStore(folder, torch.zeros(too_many, dtype=torch.int64), make_trainer())
    try:
        with pytest.raises(OSError, match=r"cannot make room for .* No space left on device. Free some space"):
            store.add(torch.tensor([0]), torch.zeros(1, 1, 1024, 1024, dtype=torch.uint8))
        assert not list(folder.iterdir())
    finally:
        shutil.rmtree(folder)
