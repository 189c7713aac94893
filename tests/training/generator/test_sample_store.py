"""The files that collect samples: found again, complete or not there, and never all in memory."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from scalear.evaluation.images import load_samples
from scalear.training.generator.sample_store import SampleStore, sample_origins
from scalear.training.generator.samples import SampleRequest

LABELS = torch.arange(7) % 2
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
ORIGIN = {"weights": "step 4", "model.guidance.weight": 1.5}


def make_store(folder: Path, labels=LABELS, images=IMAGES, origin: dict | None = ORIGIN, anew: bool = False):
    store = SampleStore(folder, labels, images.shape[1:], origin)
    store.complete = store.begin(anew)
    return store


def add(store: SampleStore, *batches: range, images=IMAGES) -> None:
    for batch in batches:
        store.add(batch.start, torch.from_numpy(images[batch.start : batch.stop]).permute(0, 3, 1, 2))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_images_land_at_their_places_in_any_order(tmp_path):
    store = make_store(tmp_path)
    add(store, range(5, 7), range(0, 3), range(3, 5))
    assert store.pack(SampleRequest())
    written, labels = load_samples(store.path)
    assert np.array_equal(written, IMAGES) and labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert names(tmp_path) == ["grid.png", "samples.npz"]
    assert sample_origins(tmp_path) == {tmp_path / "samples.npz": ORIGIN, tmp_path / "grid.png": ORIGIN}


def test_what_is_there_is_found_again(tmp_path, caplog):
    add(make_store(tmp_path), range(0, 2), range(4, 6))
    assert sample_origins(tmp_path) == {tmp_path / "samples.partial": ORIGIN}
    store = make_store(tmp_path)
    assert "holds 4 of 7 samples already" in caplog.text
    assert store.missing() == [range(2, 4), range(6, 7)]
    assert store.has(range(0, 2)) and store.has(range(5, 6)) and store.has(range(0))
    assert not store.has(range(1, 3)) and not store.has(range(6, 7))
    add(store, range(2, 4), range(6, 7))
    assert store.pack(SampleRequest())
    content = store.path.read_bytes()
    again = make_store(tmp_path)
    assert again.complete and again.has(range(7)) and again.pack(SampleRequest())
    assert "holds these samples already; --force makes them anew" in caplog.text
    assert not make_store(tmp_path, anew=True).has(range(7)) and not store.path.exists()

    store = make_store(tmp_path / "other sizes")  # of batches, which overlap
    add(store, range(0, 4), range(1, 2), range(2, 6), range(4, 7))
    assert store.pack(SampleRequest()) and store.path.read_bytes() == content


def test_samples_of_another_origin_are_not_mixed_in(tmp_path):
    for origin in (ORIGIN | {"weights": "step 5"}, None, None):  # nobody knows what the last two follow from
        add(make_store(tmp_path), range(0, 2))
        store = make_store(tmp_path, origin=origin)
        assert store.missing() == [range(0, 7)]
        add(store, range(0, 2))
        assert make_store(tmp_path).missing() == [range(0, 7)]
    store = make_store(tmp_path)
    add(store, range(7))
    assert store.pack(SampleRequest())
    complete = store.path.read_bytes()
    other = make_store(tmp_path, origin=ORIGIN | {"weights": "step 5"})
    assert not other.complete and store.path.read_bytes() == complete  # until it is replaced as a whole
    add(other, range(7))
    assert other.pack(SampleRequest()) and store.path.read_bytes() != complete


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other labels"])
def test_a_damaged_batch_is_made_again(tmp_path, damage):
    store = make_store(tmp_path)
    add(store, range(0, 3), range(3, 7))
    path = tmp_path / "samples.partial" / "0000003-0000006.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-100], "changed": content, "empty": b"", "other labels": b""}[damage])
    if damage == "other labels":
        make_store(tmp_path / "other", labels=1 - LABELS).add(3, torch.from_numpy(IMAGES[3:]).permute(0, 3, 1, 2))
        shutil.copy(tmp_path / "other" / "samples.partial" / path.name, path)
    with pytest.raises(ValueError, match=path.name):
        store.pack(SampleRequest())
    assert names(tmp_path / "samples.partial") == ["0000000-0000002.npz", path.name, "origin.json"]
    store = make_store(tmp_path)
    assert store.has(range(0, 3)) and not store.has(range(3, 7))
    add(store, range(3, 7))
    assert store.pack(SampleRequest()) and np.array_equal(load_samples(store.path)[0], IMAGES)


def test_what_is_missing_is_said(tmp_path, caplog):
    labels = torch.zeros(50_000, dtype=torch.int64)
    images = np.zeros((50_000, 1, 1, 1), np.uint8)
    store = make_store(tmp_path, labels, images)
    add(store, range(0, 6_250), range(12_500, 50_000), images=images)
    assert not store.pack(SampleRequest())
    assert "6,250 of 50,000 samples are missing: 6,250-12,499. Run the parts" in caplog.text
    assert not store.path.exists()


def test_two_jobs_that_end_at_once_do_no_harm(tmp_path):
    """The one packs while the other is at it, and takes its batches away."""
    first, second = make_store(tmp_path), make_store(tmp_path)
    add(first, range(0, 3), range(3, 7))

    class PacksInTheMeantime(SampleRequest):
        def grid(self, labels):
            assert second.pack(SampleRequest())
            return super().grid(labels)

    assert first.pack(PacksInTheMeantime())
    assert np.array_equal(load_samples(first.path)[0], IMAGES)
    assert names(tmp_path) == ["grid.png", "samples.npz"]


def test_a_job_that_begins_beside_another_keeps_its_batches(tmp_path):
    first = make_store(tmp_path)
    add(first, range(0, 3))
    second = make_store(tmp_path)
    add(second, range(3, 7))
    assert first.has(range(3, 7)) and first.pack(SampleRequest())
    add(second, range(0, 3))  # too late, but it cannot know
    assert second.pack(SampleRequest()) and names(tmp_path) == ["grid.png", "samples.npz"]


def test_memory_does_not_grow_with_the_count(tmp_path):
    def peak(count: int) -> int:
        images = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), np.uint8)  # 1.2 MB
        store = make_store(tmp_path / str(count), torch.zeros(count, dtype=torch.int64), images)
        tracemalloc.start()
        for start in range(0, count, 100):
            store.add(start, torch.from_numpy(images).permute(0, 3, 1, 2))
        assert store.pack(SampleRequest(grid_rows=2))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(200), peak(2000)
    assert many < few + 0.5e6 and many < 8e6  # of 25 MB


def test_a_disk_that_is_too_small_is_noticed_before_sampling(tmp_path):
    too_many = shutil.disk_usage(tmp_path).total // 2**20 + 1
    with pytest.raises(OSError, match=r"samples of 1,048,576 bytes, and .* left: free some space, or sample fewer"):
        make_store(tmp_path, torch.zeros(too_many, dtype=torch.int64), np.empty((1, 1024, 1024, 1), np.uint8))
    assert names(tmp_path) == []
