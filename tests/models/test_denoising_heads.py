"""Flow matching and diffusion around networks per scale and per token: the four of FlowAR's table 5."""

from functools import partial

import pytest
import torch
from head_fixtures import SHORT, agreement, train
from model_fixtures import LatentsAlone, randomise, seeded, transformer_class
from recorded_draws import RecordedDraws

from scalear.diffusion import DDIM, levels
from scalear.fast.accelerate import accelerate
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.image_model import ImageModel
from scalear.models.diffusion_head import DiffusionHead
from scalear.models.flow_head import FlowHead
from scalear.models.injections import SpatialAdaLN
from scalear.models.per_token import PerTokenMLP
from scalear.pyramid import Content, LatentPyramid
from scalear.scales import ScaleSchedule

HEADS = {
    "flow": (FlowHead, FlowSolver(num_steps=4)),
    "cosine": (DiffusionHead, DDIM(8)),
    "linear": (partial(DiffusionHead, noise_schedule="linear"), DDIM(8)),
}
NETWORKS = [partial(SpatialAdaLN, dim=16, depth=1, num_heads=2), partial(PerTokenMLP, dim=16, depth=2)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", HEADS)
def test_a_few_steps_lower_the_loss_and_samples_follow_the_semantics(kind, network):
    torch.manual_seed(0)
    head, sampling = HEADS[kind]
    head = head(Content(2), 24, SHORT, network)
    losses = train(head)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert agreement(head, sampling) > 0.2


def make(**changes) -> ImageModel:
    """FlowAR with diffusion, its every weight random."""
    head = partial(DiffusionHead, network=NETWORKS[0], **changes)
    how = DDIM(4), Guidance()
    return randomise(ImageModel(LatentsAlone(4), LatentPyramid, transformer_class("1,2,4"), head, *how)).eval()


def tokens(channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(3, SHORT.num_tokens, channels, generator=generator)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_fresh_head_guesses_no_noise_in_what_is_mixed_as_its_steps_say(kind):
    head = HEADS[kind][0](Content(2), 24, SHORT, NETWORKS[0])
    uniform_B, seen = torch.tensor([0.0, 0.3456, 0.9999]), []
    head.network.register_forward_hook(lambda module, args, output: seen.extend(args[:2]))
    targets, noises = (list(SHORT.split(tokens(2) + shift)) for shift in (0.0, 1.0))
    draws = RecordedDraws({f"t_{k}": uniform_B for k in range(2)} | {f"noise_{k}": noises[k] for k in range(2)})
    loss_K = head.loss(tokens(24), targets, SHORT, draws)["loss"]
    torch.testing.assert_close(loss_K, torch.stack([noise.square().mean() for noise in noises]))
    noisy_BLC, noise_level_BK = seen
    torch.testing.assert_close(noise_level_BK, torch.tensor([[0.001, 0.346, 1.0]] * 2).T)
    signal, noise = levels(kind)[[1, 346, 1000]].float()[..., None, None].unbind(1)
    torch.testing.assert_close(noisy_BLC, signal * torch.cat(targets, 1) + noise * torch.cat(noises, 1))


@pytest.mark.parametrize("kind", ["flow", "cosine"])
def test_scales_may_weigh_the_same(kind):
    schedule = ScaleSchedule.parse("1,2,4")
    heads = [HEADS[kind][0](Content(2), 24, schedule, NETWORKS[0], scale_weighting=by) for by in ("tokens", "scales")]
    assert [head.scale_weights(schedule) for head in heads] == [[1 / 16, 4 / 16, 1.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("fast", [False, True])
def test_tokens_of_the_mlp_are_independent_given_their_semantics(fast):
    network = PerTokenMLP(2, 24, SHORT, dim=16, depth=2)
    x, hidden, noise_level_BK = tokens(2), tokens(24), torch.full((3, 2), 0.3)

    def velocity(x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return network(x, noise_level_BK, network.prepare(hidden, SHORT), SHORT)

    assert torch.equal(velocity(x, hidden), torch.zeros_like(x))
    randomise(network)
    if fast:
        accelerate(network)
    whole = velocity(x, hidden)
    for token in range(SHORT.num_tokens):
        moved = torch.zeros(1, SHORT.num_tokens, 1)
        moved[:, token] = 1.0
        for changed in (velocity(x + moved, hidden), velocity(x, hidden + moved)):
            apart_L = (changed - whole).abs().amax((0, 2))
            assert apart_L[token] > 1e-2 and apart_L.sum() - apart_L[token] < 1e-5
    one, alone = ScaleSchedule.parse("1"), [network.prepare(hidden[:, 3:4], None)]  # whichever scale it is of
    torch.testing.assert_close(network(x[:, 3:4], noise_level_BK[:, :1], alone[0], one), whole[:, 3:4])


def test_a_model_with_diffusion_samples_guided_and_alone():
    model, label = make(), torch.tensor([0, 2, 1])
    rows = []
    model.generator.head.network.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    unguided = model.sample_latent(label, seeded(3))
    assert unguided.shape == (3, 4, 4, 4) and unguided.isfinite().all() and rows == [3] * 12
    alone = model.sample_latent(label[:1], seeded(1))
    torch.testing.assert_close(alone[0], unguided[0], rtol=0, atol=1e-4)
    rows.clear()
    guided = model.sample_latent(label, seeded(3), guidance=Guidance(2.0, start_time=0.3))
    assert rows == [3] * 4 + [3, 6, 6, 6] * 2 and not torch.allclose(guided, unguided, atol=1e-2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="DiffusionHead predicts latents, not codes: take LatentPyramid"):
        DiffusionHead(Content(2, 8), 24, SHORT, NETWORKS[0])
    with pytest.raises(ValueError, match="DiffusionHead cannot sample with FlowSolver.*: set num_steps, limit"):
        make().generator.check_sampling(FlowSolver())
    model = make()
    with torch.no_grad():
        model.generator.head.network.output_proj.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="noises of scale 1 are not finite in step 1 of 4, t = 0.249"):
        model.sample_latent(torch.tensor([0]), seeded(1))
