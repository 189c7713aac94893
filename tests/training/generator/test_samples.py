"""Which images are sampled, and who samples them."""

import numpy as np
import pytest

from scalear.training.generator.samples import SampleRequest


def test_every_class_can_have_a_number_of_its_own():
    assert SampleRequest(num_per_class={2: 3, 0: 1}).labels(4).tolist() == [2, 0, 2, 2]
    assert SampleRequest(num_per_class={4: 2}).labels(4).tolist() == [4, 4]  # the null class
    assert SampleRequest(num_per_class=1, classes=[3, 1]).labels(4).tolist() == [3, 1]
    with pytest.raises(ValueError, match="label 5 is out of range"):
        SampleRequest(num_per_class={5: 1}).labels(4)
    with pytest.raises(ValueError, match="leave out classes"):
        SampleRequest(num_per_class={1: 1}, classes=[1])
    with pytest.raises(ValueError, match=r"classes \[1, 2, 1\] name 1 twice: num_per_class says"):
        SampleRequest(classes=[1, 2, 1])
    for counts in (0, {}, {1: 0}):
        with pytest.raises(ValueError, match="num_per_class, num_images, .* must be at least 1"):
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


def test_a_number_of_images_is_shared_out_over_the_classes():
    """However many these are; a number per class comes before it."""
    request = SampleRequest(num_images=2000)
    assert request.labels(10).equal(SampleRequest(num_per_class=200).labels(10))
    assert request.labels(0).tolist() == [0] * 2000
    assert request.labels(3000).tolist() == list(range(2000))
    assert SampleRequest(num_images=5, classes=[7, 3]).labels(10).tolist() == [7, 3, 7, 3, 7]
    assert SampleRequest(num_images=5, num_per_class=1).labels(2).tolist() == [0, 1]
    assert SampleRequest().labels(3).bincount().tolist() == [10] * 3
    with pytest.raises(ValueError, match="must be at least 1, got None, 0, 100, None, 10"):
        SampleRequest(num_images=0)


def test_classes_that_have_enough_drop_out_of_the_rounds():
    labels = SampleRequest(num_per_class={3: 10, 7: 5, 0: 1}).labels(10).tolist()
    assert labels == [3, 7, 0] + [3, 7] * 4 + [3] * 5


def test_a_label_file_says_every_label_in_its_order(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("3\n3\n7\n1\n")
    assert SampleRequest(label_file=str(file)).labels(10).tolist() == [3, 3, 7, 1]
    for more in ({"classes": [5]}, {"num_per_class": {5: 1}}):
        with pytest.raises(ValueError, match="labels.txt holds every label: leave out"):
            SampleRequest(label_file=str(file), **more)


@pytest.mark.parametrize("num_samples, parts, ranks", [(50_000, 8, 8), (50_000, 1, 7), (100, 3, 1), (20, 4, 3)])
def test_parts_and_ranks_share_the_batches_of_one_process(num_samples, parts, ranks):
    (whole,) = [SampleRequest().batches(num_samples, 0, 1)]
    shares = [
        SampleRequest(part=f"{number}/{parts}").batches(num_samples, rank, ranks)
        for number in range(1, parts + 1)
        for rank in range(ranks)
    ]
    assert sorted((batch for share in shares for batch in share), key=lambda batch: batch.start) == whole
    assert np.concatenate(whole).tolist() == list(range(num_samples))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 2


@pytest.mark.parametrize("part", ["0/8", "9/8", "3", "3/", "-1/2", "1/0"])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(ValueError, match=f"part {part} must be one of 1/N to N/N, such as 3/8"):
        SampleRequest(part=part)


def test_a_rank_without_images_still_takes_part():
    ((first, label_B),) = SampleRequest(num_per_class=1, batch_size=4).loader(num_classes=4, rank=1, world_size=2)
    assert len(label_B) == 0


def test_the_grid_has_a_column_for_every_class():
    labels = np.array([0, 1, 2, 0, 1, 0])
    places, columns = SampleRequest().grid(labels)
    assert (places.tolist(), columns) == ([0, 1, 2], 3)  # class 2 has one image
    places, columns = SampleRequest(grid_columns=2, grid_rows=2).grid(labels)
    assert (places.tolist(), columns) == ([0, 1, 2, 3], 2)
    for labels in (np.zeros(200, np.int64), np.arange(200)):  # one class, and more than columns would fit
        places, columns = SampleRequest(grid_rows=3).grid(labels)
        assert (places.tolist(), columns) == (list(range(30)), 10)
