"""The generator as FlowAR has it, inside an image model."""

from functools import partial

import pytest
import torch
from model_fixtures import (
    NUM_CLASSES,
    LatentsAlone,
    make_code_model,
    make_model,
    network_class,
    randomise,
    seeded,
    transformer_class,
)
from recorded_draws import RecordedDraws

from scalear.draws import SeededDraws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.image_model import ImageModel
from scalear.models.flow_head import FlowHead
from scalear.pyramid import LatentPyramid

SOLVER = FlowSolver(num_steps=4)
HOW = SOLVER, Guidance(2.0)


class Recorder:
    """Seeded draws that are kept."""

    def __init__(self, draws: SeededDraws) -> None:
        self._draws = draws
        self.record: dict[str, torch.Tensor] = {}

    def uniform(self, name: str, *shape: int) -> torch.Tensor:
        return self.record.setdefault(name, self._draws.uniform(name, *shape))

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        return self.record.setdefault(name, self._draws.normal(name, *shape))


def random_model(*args, **changes) -> ImageModel:
    return randomise(make_model(*args, **{"sampling": SOLVER} | changes)).eval()


def make_latent(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cross_attention", [False, True])
def test_guidance_of_one_equals_the_unguided_call_exactly(cross_attention):
    model = random_model(cross_attention=cross_attention)
    label = torch.tensor([0, 2, 1])

    def generate(guidance: Guidance) -> torch.Tensor:
        return model.sample_latent(label, seeded(3), guidance=guidance)

    unguided = generate(Guidance())
    assert torch.equal(generate(Guidance(1.0, ramp="constant", start_time=0.0)), unguided)
    assert not torch.allclose(generate(Guidance(2.0)), unguided, atol=1e-2)


def test_the_null_class_is_not_guided_and_no_weight_is_the_null_class():
    model = random_model()
    label, null = torch.tensor([0, 2]), torch.tensor([NUM_CLASSES] * 2)

    def generate(label_B: torch.Tensor, weight: float) -> torch.Tensor:
        guidance = Guidance(weight, ramp="constant", start_time=0.0)
        return model.sample_latent(label_B, seeded(2), guidance=guidance)

    torch.testing.assert_close(generate(null, 3.0), generate(null, 1.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(generate(label, 0.0), generate(null, 1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize("scales, patch_size", [("1,2,4", 1), ("1,4", 2)])
def test_a_sample_does_not_depend_on_its_batch(scales, patch_size, weight):
    model = random_model(scales, patch_size=patch_size)
    label, guidance = torch.arange(8) % NUM_CLASSES, Guidance(weight)
    draws = Recorder(seeded(8))
    together = model.sample_latent(label, draws, guidance=guidance)
    assert together.shape == (8, 4, 4 * patch_size, 4 * patch_size) and together.dtype == torch.float32
    for index in range(8):
        alone = Recorder(SeededDraws([(0, index)]))
        sample = model.sample_latent(label[index : index + 1], alone, guidance=guidance)
        torch.testing.assert_close(sample[0], together[index], rtol=0, atol=1e-4)
        assert alone.record.keys() == draws.record.keys()
        for name, numbers in alone.record.items():
            assert torch.equal(numbers[0], draws.record[name][index])


@pytest.mark.parametrize("make, what", [(make_model, "velocities"), (partial(make_code_model, "var"), "logits")])
def test_what_is_not_finite_is_no_sample(make, what):
    model = randomise(make()).eval()
    with torch.no_grad():
        model.generator.transformer.positions[0].table_LD[1:5] = float("nan")  # the tokens of the second scale
    with pytest.raises(ValueError, match=f"{what} of scale 2 are not finite"):
        model.sample_latent(torch.tensor([0]), seeded(1))


def test_the_step_that_is_not_finite_is_named():
    model = random_model()
    network, forward = model.generator.head.network, model.generator.head.network.forward

    def late(x_BLC, noise_level_BK, *args):
        velocity_BLC = forward(x_BLC, noise_level_BK, *args)
        return velocity_BLC / (noise_level_BK[..., None] > 0.6)  # infinite from t = 0.4 on

    network.forward = late
    with pytest.raises(ValueError, match=r"velocities of scale 1 are not finite in step 3 of 4, t = 0.5: the weights"):
        model.sample_latent(torch.tensor([0]), seeded(1), sampling=FlowSolver(num_steps=4))


def test_training_mode_chooses_no_other_algorithm():
    model = random_model()
    label = torch.tensor([0, 1])
    training, evaluation = (
        model.train(mode).sample_latent(label, seeded(2), guidance=Guidance(2.0)) for mode in (True, False)
    )
    assert torch.equal(training, evaluation)


@pytest.mark.parametrize("method, evaluations", [("euler", 1), ("heun", 2)])
def test_the_unconditional_branch_is_computed_only_where_it_counts(method, evaluations):
    model = random_model()
    rows = []
    model.generator.head.network.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    label, solver = torch.tensor([0, 1]), FlowSolver(method, num_steps=4)

    def generate(guidance: Guidance) -> list[int]:
        rows.clear()
        model.sample_latent(label, seeded(2), sampling=solver, guidance=guidance)
        return list(rows)

    assert generate(Guidance(1.0)) == [2] * 12 * evaluations
    # Scale 0 is not guided; on the others only the evaluation at time 0 is too early.
    per_scale = 4 * evaluations
    assert generate(Guidance(2.0)) == [2] * per_scale + [2, *[4] * (per_scale - 1)] * 2
    assert generate(Guidance(2.0, ramp="constant", start_time=0.0)) == [4] * 12 * evaluations


@pytest.mark.parametrize("make", [partial(make_model, sampling=SOLVER), partial(make_code_model, "var")])
def test_without_classes_there_is_nothing_to_guide_to(make):
    model = randomise(make(num_classes=0)).eval()
    rows = []
    for part in (model.generator.transformer.norms[-1], model.generator.head):
        for module in part.modules():
            module.register_forward_hook(lambda module, args, output: rows.append(len(output)))

    def generate(guidance: Guidance) -> tuple[torch.Tensor, list[int]]:
        rows.clear()
        return model.sample_latent(torch.tensor([0, 0]), seeded(2), guidance=guidance), list(rows)

    (unguided, rows_unguided), (guided, rows_guided) = map(generate, (Guidance(), Guidance(3.0, ramp="constant")))
    assert torch.equal(guided, unguided) and rows_guided == rows_unguided and len(rows_guided) > 3


def test_steps_begin_where_guidance_does():
    model, times = random_model(), []
    embedding = model.generator.head.network.time_embedding
    embedding.register_forward_hook(lambda module, args, output: times.append(1 - args[0][0, 0].item()))
    solver, guidance = FlowSolver("ab3", num_steps=3, grid="late"), Guidance(2.0, start_time=0.25)
    model.sample_latent(torch.tensor([0]), seeded(1), sampling=solver, guidance=guidance)
    assert times == pytest.approx([0, 1 / 2, 4 / 5, *[0, 0.25, 0.75] * 2])  # scale 0 is not guided


@pytest.mark.parametrize("method, rows", [("ab3", [2, 4, 2]), ("heun", [2, 2, 4, 4, 2, 2])])
def test_steps_after_the_interval_are_not_guided(method, rows):
    model, found, label = random_model(), [], torch.tensor([0, 1])
    model.generator.head.network.register_forward_hook(lambda module, args, output: found.append(len(output)))

    def generate(end_time: float | None) -> torch.Tensor:
        found.clear()
        guidance = Guidance(2.0, start_time=0.25, end_time=end_time)
        return model.sample_latent(label, seeded(2), sampling=FlowSolver(method, 3, "late"), guidance=guidance)

    latent = generate(0.75)
    assert found == [2] * len(rows) + rows * 2  # scale 0 is not guided
    whole = generate(None)
    assert torch.equal(generate(1.0), whole) and not torch.allclose(latent, whole, atol=1e-3)


def test_the_transformer_sees_one_row_per_image_where_guidance_is_off():
    model = random_model()
    rows = []
    model.generator.transformer.norms[-1].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    for weight, expected in ((1.0, 2), (2.0, 4)):
        rows.clear()
        model.sample_latent(torch.tensor([0, 1]), seeded(2), guidance=Guidance(weight))
        assert rows == [expected] * 3


@pytest.mark.parametrize("scales", ["1,2,4", "1,4"])
def test_every_token_weighs_the_same_in_the_loss(scales):
    model = random_model(scales)
    loss = model.loss(make_latent(), torch.tensor([0, 1, 2, 0]), seeded(4))
    sides = [int(side) for side in scales.split(",")]
    assert loss.per_scale["loss"].shape == (len(sides),) and not loss.per_scale["loss"].requires_grad
    weights = torch.tensor([side**2 / sides[-1] ** 2 for side in sides])
    torch.testing.assert_close(loss.total.detach(), (loss.per_scale["loss"] * weights).sum())


def test_the_loss_of_a_fresh_generator_is_the_power_of_the_velocity():
    model = make_model()
    draws = Recorder(seeded(4))
    loss = model.loss(make_latent(), torch.tensor([0, 1, 2, 0]), draws)
    for k, target in enumerate(model.pyramid.build(make_latent(), model.schedule).targets):
        torch.testing.assert_close(loss.per_scale["loss"][k], (target - draws.record[f"noise_{k}"]).square().mean())


def test_recorded_draws_replay_the_same_loss_and_the_same_samples():
    model = random_model(label_drop_prob=0.5)
    label, draws = torch.tensor([0, 1, 2, 0]), Recorder(seeded(4))
    loss = model.loss(make_latent(), label, draws)
    assert draws.record.keys() == {"label_drop", *(f"{kind}_{k}" for kind in ("t", "noise") for k in range(3))}
    replayed = model.loss(make_latent(), label, RecordedDraws(draws.record))
    assert torch.equal(replayed.total, loss.total) and torch.equal(replayed.per_scale["loss"], loss.per_scale["loss"])

    draws = Recorder(seeded(4))
    samples = model.sample_latent(label, draws, guidance=Guidance(2.0))
    assert torch.equal(model.sample_latent(label, RecordedDraws(draws.record), guidance=Guidance(2.0)), samples)


def test_without_blocks_and_with_one_scale_the_semantics_are_class_and_place():
    """The DiT-style baseline: all that is learned of an image is in the head's network."""
    transformer = transformer_class("4", depths=[], input_norm=False)
    model = ImageModel(LatentsAlone(), LatentPyramid, transformer, partial(FlowHead, network=network_class()), *HOW)
    randomise(model)
    transformer, label = model.generator.transformer, torch.tensor([0, 2])
    cond_BD = transformer.embed(label)
    hidden_BLD = transformer(torch.zeros(2, 0, 4), cond_BD, transformer.schedule)
    assert torch.equal(hidden_BLD, cond_BD[:, None] + transformer.positions[0].table_LD)
    model.loss(make_latent(2), label, seeded(2)).total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []  # DDP waits for all
    samples = model.sample_latent(label, seeded(2))
    assert samples.shape == (2, 4, 4, 4) and samples.isfinite().all()
    assert not torch.allclose(model.sample_latent(label.flip(0), seeded(2)), samples, atol=1e-2)


def test_a_share_of_labels_becomes_the_null_class():
    def labels_seen(label_drop_prob: float, label_B: torch.Tensor, uniform_B: torch.Tensor) -> list[int]:
        model, seen = make_model(label_drop_prob=label_drop_prob), []
        embedding = model.generator.transformer.class_embedding
        embedding.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        draws = Recorder(seeded(len(label_B)))
        draws.record["label_drop"] = uniform_B
        model.loss(make_latent(len(label_B)), label_B, draws)
        return seen[0].tolist()

    label, uniform = torch.tensor([0, 1, 2, 1]), torch.tensor([0.0, 0.29, 0.3, 0.99])
    assert labels_seen(0.3, label, uniform) == [NUM_CLASSES, NUM_CLASSES, 2, 1]
    assert labels_seen(0.0, label, uniform) == label.tolist()
    assert labels_seen(1.0, label, uniform) == [NUM_CLASSES] * 4
    # Unlabelled samples teach the null class.
    assert labels_seen(0.0, torch.tensor([-1, 1, -1, 2]), uniform) == [NUM_CLASSES, 1, NUM_CLASSES, 2]


@pytest.mark.parametrize("bad", [-1, NUM_CLASSES + 1])
def test_labels_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=rf"label {bad} is out of range: the model knows classes 0..2 \(and 3"):
        make_model().sample_latent(torch.tensor([0, bad]), seeded(2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"label_drop_prob": 1.5}, r"label_drop_prob must be in \[0, 1\], got 1.5"),
        ({"scales": ""}, "scale list must not be empty"),
        ({"scales": "1,4,2"}, "scale 2 follows 4"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)
