"""How semantics reach a velocity network: what holds for every injection, and what tells them apart."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from head_fixtures import SHORT, agreement, train
from model_fixtures import randomise
from torch import Tensor

from scalear.fast.accelerate import accelerate
from scalear.flow import FlowSolver
from scalear.models.flow_head import FlowHead
from scalear.models.injections import (
    Addition,
    AveragedAdaLN,
    ChannelConcatenation,
    CrossAttentionInjection,
    CrossSpatialAdaLN,
    FlowTransformer,
    SequenceConcatenation,
    SpatialAdaLN,
)
from scalear.pyramid import Content
from scalear.scales import ScaleSchedule

TABLE_6 = [
    *(AveragedAdaLN, SequenceConcatenation, Addition),
    *(CrossAttentionInjection, ChannelConcatenation, SpatialAdaLN),
]
INJECTIONS = [*TABLE_6, CrossSpatialAdaLN]
SCHEDULE = ScaleSchedule.parse("1,2,2x4,4")


def make(kind: type[FlowTransformer], dim: int = 32, num_heads: int = 2) -> FlowTransformer:
    return kind(4, 24, SCHEDULE, dim=dim, depth=2, num_heads=num_heads)


def tokens(schedule: ScaleSchedule, channels: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, schedule.num_tokens, channels, dtype=torch.float64, generator=generator)


def velocity(network: FlowTransformer, x: Tensor, hidden: Tensor, schedule: ScaleSchedule) -> Tensor:
    noise_level_BK = torch.linspace(0.1, 0.9, schedule.num_scales, dtype=x.dtype).expand(2, -1)
    return network(x, noise_level_BK, network.prepare(hidden, schedule), schedule)


@pytest.fixture(params=INJECTIONS)
def network(request) -> FlowTransformer:
    return randomise(make(request.param)).double()


@pytest.mark.parametrize("kind", INJECTIONS)
def test_a_fresh_network_returns_exactly_zero_and_trains_all_its_weights(kind):
    network = make(kind).double()
    out = velocity(network, tokens(SCHEDULE, 4), tokens(SCHEDULE, 24), SCHEDULE)
    assert out.shape == (2, SCHEDULE.num_tokens, 4) and torch.equal(out, torch.zeros_like(out))
    out.sum().backward()  # DDP waits for a gradient of each
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("fast", [False, True])
def test_joined_scales_equal_one_scale_at_a_time(network, fast):
    if fast:
        accelerate(network)
    x, hidden = tokens(SCHEDULE, 4), tokens(SCHEDULE, 24)
    noise_level_BK = torch.rand(2, SCHEDULE.num_scales).double()
    joined = SCHEDULE.split(network(x, noise_level_BK, network.prepare(hidden, SCHEDULE), SCHEDULE))
    for k, (x_k, hidden_k) in enumerate(zip(SCHEDULE.split(x), SCHEDULE.split(hidden), strict=True)):
        scale = SCHEDULE.scale(k)
        alone = network(x_k, noise_level_BK[:, k : k + 1], network.prepare(hidden_k, scale), scale)
        assert alone.abs().max() > 0.1
        torch.testing.assert_close(alone, joined[k], rtol=0, atol=1e-9)


def test_every_token_depends_on_all_semantics_of_its_scale_and_on_time(network):
    schedule = ScaleSchedule.parse("2x4")
    x, hidden = tokens(schedule, 4), tokens(schedule, 24)
    before = velocity(network, x, hidden, schedule)
    for token in range(schedule.num_tokens):
        changed = hidden.clone()
        changed[:, token] += 1.0
        assert (velocity(network, x, changed, schedule) - before).abs().amax(-1).min() > 1e-6
    condition, zeros = network.prepare(hidden, schedule), torch.zeros(2, 1, dtype=x.dtype)
    assert not torch.allclose(network(x, zeros, condition, schedule), network(x, zeros + 0.5, condition, schedule))


def test_only_averaged_semantics_may_change_places(network):
    schedule = ScaleSchedule.parse("4")
    x, hidden = tokens(schedule, 4), tokens(schedule, 24)
    apart = velocity(network, x, hidden, schedule) - velocity(network, x, hidden.flip(1), schedule)
    assert (apart.abs().max() < 1e-12) == isinstance(network, AveragedAdaLN)


@pytest.mark.parametrize("kind", [Addition, ChannelConcatenation])
def test_what_is_joined_at_the_input_is_the_sum_of_two_maps(kind):
    """Only the first passes the semantics through the channels of a token."""
    network = randomise(make(kind)).double()
    x, hidden = tokens(SCHEDULE, 4), tokens(SCHEDULE, 24)
    weight = network.input_proj.weight
    embedded = F.linear(network.cond_proj(hidden), weight if kind is Addition else weight[:, 4:])
    embedded = embedded + F.linear(x, weight[:, :4], network.input_proj.bias)
    time = network.time(torch.linspace(0.1, 0.9, SCHEDULE.num_scales, dtype=x.dtype).expand(2, -1), SCHEDULE)
    expected = network.run(embedded, time, SCHEDULE)
    torch.testing.assert_close(velocity(network, x, hidden, SCHEDULE), expected, rtol=0, atol=1e-9)


def test_semantics_in_the_sequence_are_tokens_of_a_map_twice_as_high_and_cut_off():
    network = randomise(make(SequenceConcatenation)).double()
    schedule, stacked = ScaleSchedule.parse("2x4"), ScaleSchedule.parse("4x4")
    x, hidden = tokens(schedule, 4), tokens(schedule, 24)
    time = network.time(torch.full((2, 1), 0.1, dtype=x.dtype), stacked)
    sequence = torch.cat([network.cond_proj(hidden), network.input_proj(x)], dim=1)
    expected = network.run(sequence, time, stacked)[:, 8:]
    torch.testing.assert_close(velocity(network, x, hidden, schedule), expected, rtol=0, atol=1e-9)
    exchanged = network.run(sequence.roll(8, dims=1), time, stacked)[:, :8]
    assert not torch.allclose(exchanged, expected, atol=1e-3)  # places tell the two apart


@pytest.mark.parametrize("kind", INJECTIONS)
def test_a_few_steps_lower_the_loss_and_samples_follow_the_semantics(kind):
    torch.manual_seed(0)
    head = FlowHead(Content(2), 24, SHORT, partial(kind, dim=16, depth=1, num_heads=2))
    losses = train(head)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert agreement(head, FlowSolver(num_steps=4)) > 0.2
