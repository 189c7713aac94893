"""The velocity network, around each of its blocks."""

import pytest
import torch
from model_fixtures import make_network, randomise

from scalear.fast.accelerate import accelerate
from scalear.scales import ScaleSchedule


def tokens(schedule: ScaleSchedule, channels: int) -> torch.Tensor:
    return torch.randn(2, schedule.num_tokens, channels, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("cross_attention", [False, True])
def test_a_fresh_network_returns_exactly_zero(cross_attention):
    network, schedule = make_network(cross_attention=cross_attention), ScaleSchedule.parse("1,2")
    condition = network.prepare(tokens(schedule, 24), schedule)
    velocity = network(tokens(schedule, 4), torch.rand(2, 2), condition, schedule)
    assert velocity.shape == (2, schedule.num_tokens, 4)
    assert torch.equal(velocity, torch.zeros_like(velocity))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("cross_attention", [False, True])
def test_joined_scales_equal_one_scale_at_a_time(cross_attention, fast):
    network = randomise(make_network(cross_attention=cross_attention))
    if fast:
        accelerate(network)
    schedule = ScaleSchedule.parse("1,2,2x4,4")
    x, hidden = tokens(schedule, 4), tokens(schedule, 24)
    noise_level_BK = torch.rand(2, schedule.num_scales)
    joined = schedule.split(network(x, noise_level_BK, network.prepare(hidden, schedule), schedule))
    for k, (x_k, hidden_k) in enumerate(zip(schedule.split(x), schedule.split(hidden), strict=True)):
        scale = schedule.scale(k)
        alone = network(x_k, noise_level_BK[:, k : k + 1], network.prepare(hidden_k, scale), scale)
        assert alone.abs().max() > 0.1
        torch.testing.assert_close(alone, joined[k], rtol=1e-5, atol=1e-5)


def test_quantised_time_truncates_the_noise_level_to_thousandths():
    embedding = randomise(make_network(quantise_time=True)).time_embedding
    first, second, third = embedding(torch.tensor([0.4271, 0.4279, 0.428]))
    assert torch.equal(first, second) and not torch.equal(second, third)


def test_heads_must_share_the_width():
    with pytest.raises(ValueError, match="dim 33 is not a multiple of num_heads 2"):
        make_network(dim=33)
