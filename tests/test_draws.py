import pytest
import torch

from scalear.draws import DROPOUT, SCHEDULES, TRAINING, VALIDATION, SeededDraws


def test_a_row_depends_on_its_stream_alone():
    streams = [(0, 5), (0, 6), (1, 5)]
    together = SeededDraws(streams)
    uniform, normal = together.uniform("t_0"), together.normal("noise_0", 4, 3)
    for row, stream in enumerate(streams):
        for batch in ([stream], [(9, 9), stream, (0, 7)]):
            place = batch.index(stream)
            alone = SeededDraws(batch)
            assert torch.equal(alone.uniform("t_0")[place], uniform[row])
            assert torch.equal(alone.normal("noise_0", 4, 3)[place], normal[row])


def test_streams_differ_from_their_neighbours():
    ends = [(0, end, 0) for end in (DROPOUT, SCHEDULES, TRAINING, VALIDATION)]
    streams = [(0, 0), (0, 1), (1, 0), (0, 0, 1), (10, 0), *ends]
    rows = SeededDraws(streams).normal("noise_0", 1000)
    correlations = torch.corrcoef(rows) - torch.eye(len(streams))
    assert correlations.abs().max() < 0.15


def test_later_draws_of_a_stream_are_new_numbers():
    draws = SeededDraws([(0, 0)])
    assert not torch.equal(draws.normal("noise_0", 8), draws.normal("noise_1", 8))


def test_draws_have_their_distributions():
    draws = SeededDraws([(0, index) for index in range(200)])
    uniform, normal = draws.uniform("a", 100), draws.normal("b", 100)
    assert uniform.dtype == normal.dtype == torch.float32
    assert 0 <= uniform.min() and uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.01) and uniform.std() == pytest.approx(12**-0.5, abs=0.01)
    assert normal.mean() == pytest.approx(0.0, abs=0.03) and normal.std() == pytest.approx(1.0, abs=0.03)


def test_images_and_batches_name_their_streams():
    images, batch = SeededDraws.of_images(3, range(2)), SeededDraws.of_batch(3, TRAINING, torch.tensor([7, 5]))
    assert torch.equal(images.normal("a", 4), SeededDraws([(3, 0), (3, 1)]).normal("a", 4))
    assert torch.equal(batch.normal("a", 4), SeededDraws([(3, TRAINING, 7), (3, TRAINING, 5)]).normal("a", 4))


def test_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    first, state = SeededDraws([(3, 4)]).normal("a", 5), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(SeededDraws([(3, 4)]).normal("a", 5), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
