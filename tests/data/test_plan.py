from collections import Counter

import numpy as np
import pytest

from scalear.data.plan import EvalBatches, TrainBatches, TrainPlan, augmentation_uniforms

SIZES = (5, 7, 4, 6)


@pytest.mark.parametrize("shuffle_shards", [1, 3, 16])
def test_every_epoch_is_another_permutation(shuffle_shards: int):
    plan = TrainPlan(SIZES, seed=1, shuffle_shards=shuffle_shards)
    orders = [plan.order(epoch).tolist() for epoch in range(4)]
    assert all(sorted(order) == list(range(22)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert TrainPlan(SIZES, 1, shuffle_shards).order(3).tolist() == orders[3]  # whatever was asked for before
    assert TrainPlan(SIZES, 2, shuffle_shards).order(3).tolist() != orders[3]


def test_every_epoch_of_an_overfit_is_the_beginning_of_the_first():
    plan, whole = TrainPlan(SIZES, seed=1, shuffle_shards=2, overfit=6), TrainPlan(SIZES, seed=1, shuffle_shards=2)
    assert plan.samples(range(0, 18)).tolist() == 3 * whole.order(0)[:6].tolist()


def test_the_order_is_the_same_on_every_machine():
    """Breaks if NumPy or we change the order: then no older checkpoint could be resumed exactly."""
    assert TrainPlan((3, 4, 3), seed=7, shuffle_shards=2).order(5).tolist() == [3, 5, 7, 8, 4, 6, 9, 2, 0, 1]
    uniforms = augmentation_uniforms(7, range(10**12, 10**12 + 1))[0]
    np.testing.assert_allclose(uniforms, [0.5662465, 0.2151724, 0.1890115, 0.7754524], atol=1e-6)


def test_only_groups_of_shards_are_open_at_a_time():
    plan = TrainPlan([10] * 8, seed=0, shuffle_shards=2)
    shards = plan.order(0) // 10
    for group in shards.reshape(4, 20):
        assert len(set(group)) == 2


@pytest.mark.parametrize("world_size", [1, 2])
def test_three_epochs_cover_everything_exactly(world_size: int):
    plan = TrainPlan(SIZES, seed=3, shuffle_shards=2)
    ranks = [TrainBatches(22, batch_size=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen, position, lengths = [], 0, []
    for _ in range(3):
        for batches in ranks:
            batches.seek(position)
        assert len({len(batches) for batches in ranks}) == 1  # all take equal steps
        lengths.append(len(ranks[0]))
        for parts in zip(*ranks, strict=True):
            for rank, part in enumerate(parts):
                seen += plan.samples(part).tolist()
                assert ranks[rank].stream_end(part) == parts[-1].stop
            position = parts[-1].stop
    assert position == len(seen) and 66 <= position < 66 + 3 * world_size
    assert Counter(seen[:66]) == dict.fromkeys(range(22), 3)
    assert seen == np.concatenate([plan.order(epoch) for epoch in range(4)])[:position].tolist()
    assert max(lengths) - min(lengths) <= 1


def test_the_stream_does_not_depend_on_the_number_of_ranks():
    one = [list(batch) for batch in TrainBatches(22, 4)]
    two = zip(*[TrainBatches(22, 2, rank, 2) for rank in range(2)], strict=True)
    assert [[*first, *second] for first, second in two] == one


def test_a_resume_point_continues_the_epoch():
    batches = TrainBatches(22, 3)
    whole = list(batches)
    batches.seek(9, num_done=3)
    assert list(batches) == whole[3:] and len(batches) == len(whole)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 50])
def test_evaluation_is_complete_and_equally_long_on_all_ranks(world_size: int, batch_size: int):
    for num_samples in range(world_size, 14):
        ranks = [list(EvalBatches(num_samples, batch_size, rank, world_size)) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        assert [i for batches in ranks for batch in batches for i in batch] == list(range(num_samples))
        lengths = [len(batch) for batches in ranks for batch in batches]
        assert min(lengths) >= 1 and max(lengths) <= max(batch_size, 2 if num_samples % world_size else 1)


def test_fewer_samples_than_ranks_are_refused():
    with pytest.raises(ValueError, match="fewer devices"):
        EvalBatches(2, 8, rank=0, world_size=3)


def test_augmentation_of_a_sample_depends_on_its_position_only():
    together = augmentation_uniforms(5, range(100, 108))
    apart = np.concatenate([augmentation_uniforms(5, range(100, 103)), augmentation_uniforms(5, range(103, 108))])
    np.testing.assert_array_equal(together, apart)
    many = augmentation_uniforms(5, range(4000))
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.02)
    assert len(np.unique(many)) == many.size
    assert not np.array_equal(many[:8], augmentation_uniforms(6, range(8)))
