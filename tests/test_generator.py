import pytest
import torch
from model_fixtures import NUM_CLASSES, make_generator, randomise

from scalear.draws import RecordedDraws, SeededDraws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.scales import ScaleSchedule

SOLVER = FlowSolver(num_steps=4)


class Recorder:
    """Seeded draws that are kept."""

    def __init__(self, streams: list[tuple[int, ...]]) -> None:
        self._draws = SeededDraws(streams)
        self.record: dict[str, torch.Tensor] = {}

    def uniform(self, name: str, *shape: int) -> torch.Tensor:
        return self.record.setdefault(name, self._draws.uniform(name, *shape))

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        return self.record.setdefault(name, self._draws.normal(name, *shape))


def make_pyramid(generator, batch: int = 4):
    side = 4 * generator.pyramid.patch_size
    latent = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0))
    return generator.pyramid.build(latent, generator.schedule)


def streams(count: int) -> list[tuple[int, int]]:
    return [(0, index) for index in range(count)]


@pytest.mark.parametrize("cross_attention", [False, True])
def test_guidance_of_one_equals_the_unguided_call_exactly(cross_attention):
    generator = randomise(make_generator(cross_attention=cross_attention)).eval()
    label = torch.tensor([0, 2, 1])

    def generate(guidance: Guidance) -> torch.Tensor:
        return generator.generate(label, SeededDraws(streams(3)), SOLVER, guidance)

    unguided = generate(Guidance())
    assert torch.equal(generate(Guidance(1.0, ramp="constant", start_time=0.0)), unguided)
    assert not torch.allclose(generate(Guidance(2.0)), unguided, atol=1e-2)


def test_the_null_class_is_not_guided_and_no_weight_is_the_null_class():
    generator = randomise(make_generator()).eval()
    label, null = torch.tensor([0, 2]), torch.tensor([NUM_CLASSES] * 2)

    def generate(label_B: torch.Tensor, weight: float) -> torch.Tensor:
        guidance = Guidance(weight, ramp="constant", start_time=0.0)
        return generator.generate(label_B, SeededDraws(streams(2)), SOLVER, guidance)

    torch.testing.assert_close(generate(null, 3.0), generate(null, 1.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(generate(label, 0.0), generate(null, 1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize("scales, patch_size", [("1,2,4", 1), ("1,4", 2)])
def test_a_sample_does_not_depend_on_its_batch(scales, patch_size, weight):
    generator = randomise(make_generator(scales, patch_size=patch_size)).eval()
    label, guidance = torch.arange(8) % NUM_CLASSES, Guidance(weight)
    draws = Recorder(streams(8))
    together = generator.generate(label, draws, SOLVER, guidance)
    assert together.shape == (8, 4, 4 * patch_size, 4 * patch_size) and together.dtype == torch.float32
    for index in range(8):
        alone = Recorder([(0, index)])
        sample = generator.generate(label[index : index + 1], alone, SOLVER, guidance)
        torch.testing.assert_close(sample[0], together[index], rtol=0, atol=1e-4)
        assert alone.record.keys() == draws.record.keys()
        for name, numbers in alone.record.items():
            assert torch.equal(numbers[0], draws.record[name][index])


def test_training_mode_chooses_no_other_algorithm():
    generator = randomise(make_generator())
    label = torch.tensor([0, 1])
    training = generator.train().generate(label, SeededDraws(streams(2)), SOLVER, Guidance(2.0))
    assert torch.equal(generator.eval().generate(label, SeededDraws(streams(2)), SOLVER, Guidance(2.0)), training)


@pytest.mark.parametrize("method, evaluations", [("euler", 1), ("heun", 2)])
def test_the_unconditional_branch_is_computed_only_where_it_counts(method, evaluations):
    generator = randomise(make_generator()).eval()
    rows = []
    generator.head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    label, solver = torch.tensor([0, 1]), FlowSolver(method, num_steps=4)

    def generate(guidance: Guidance) -> list[int]:
        rows.clear()
        generator.generate(label, SeededDraws(streams(2)), solver, guidance)
        return list(rows)

    assert generate(Guidance(1.0)) == [2] * 12 * evaluations
    # Scale 0 is not guided; on the others only the evaluation at time 0 is too early.
    per_scale = 4 * evaluations
    assert generate(Guidance(2.0)) == [2] * per_scale + [2, *[4] * (per_scale - 1)] * 2
    assert generate(Guidance(2.0, ramp="constant", start_time=0.0)) == [4] * 12 * evaluations


def test_steps_begin_where_guidance_does():
    generator, times = randomise(make_generator()).eval(), []
    embedding = generator.head.time_embedding
    embedding.register_forward_hook(lambda module, args, output: times.append(1 - args[0][0, 0].item()))
    solver, guidance = FlowSolver("ab3", num_steps=3, grid="late"), Guidance(2.0, start_time=0.25)
    generator.generate(torch.tensor([0]), SeededDraws(streams(1)), solver, guidance)
    assert times == pytest.approx([0, 1 / 2, 4 / 5, *[0, 0.25, 0.75] * 2])  # scale 0 is not guided


def test_the_transformer_sees_one_row_per_image_where_guidance_is_off():
    generator = randomise(make_generator()).eval()
    rows = []
    generator.transformer.norms[-1].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    for weight, expected in ((1.0, 2), (2.0, 4)):
        rows.clear()
        generator.generate(torch.tensor([0, 1]), SeededDraws(streams(2)), SOLVER, Guidance(weight))
        assert rows == [expected] * 3


@pytest.mark.parametrize("scales", ["1,2,4", "1,4"])
def test_every_token_weighs_the_same_in_the_loss(scales):
    generator = randomise(make_generator(scales))
    loss = generator.loss(make_pyramid(generator), torch.tensor([0, 1, 2, 0]), SeededDraws(streams(4)))
    sides = [int(side) for side in scales.split(",")]
    assert loss.per_scale["loss"].shape == (len(sides),) and not loss.per_scale["loss"].requires_grad
    weights = torch.tensor([side**2 / sides[-1] ** 2 for side in sides])
    torch.testing.assert_close(loss.total.detach(), (loss.per_scale["loss"] * weights).sum())


def test_the_loss_of_a_fresh_generator_is_the_power_of_the_velocity():
    generator = make_generator()
    pyramid, draws = make_pyramid(generator), Recorder(streams(4))
    loss = generator.loss(pyramid, torch.tensor([0, 1, 2, 0]), draws)
    for k, target in enumerate(pyramid.targets):
        torch.testing.assert_close(loss.per_scale["loss"][k], (target - draws.record[f"noise_{k}"]).square().mean())


def test_recorded_draws_replay_the_same_loss_and_the_same_samples():
    generator = randomise(make_generator(label_drop_prob=0.5))
    pyramid, label, draws = make_pyramid(generator), torch.tensor([0, 1, 2, 0]), Recorder(streams(4))
    loss = generator.loss(pyramid, label, draws)
    assert draws.record.keys() == {"label_drop", *(f"{kind}_{k}" for kind in ("t", "noise") for k in range(3))}
    replayed = generator.loss(pyramid, label, RecordedDraws(draws.record))
    assert torch.equal(replayed.total, loss.total) and torch.equal(replayed.per_scale["loss"], loss.per_scale["loss"])

    draws = Recorder(streams(4))
    samples = generator.generate(label, draws, SOLVER, Guidance(2.0))
    assert torch.equal(generator.generate(label, RecordedDraws(draws.record), SOLVER, Guidance(2.0)), samples)


def test_a_share_of_labels_becomes_the_null_class():
    def labels_seen(label_drop_prob: float, label_B: torch.Tensor, uniform_B: torch.Tensor) -> list[int]:
        generator = make_generator(label_drop_prob=label_drop_prob)
        seen = []
        generator.transformer.class_embedding.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        pyramid, draws = make_pyramid(generator, len(label_B)), Recorder(streams(len(label_B)))
        draws.record["label_drop"] = uniform_B
        generator.loss(pyramid, label_B, draws)
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
        make_generator().generate(torch.tensor([0, bad]), SeededDraws(streams(2)), SOLVER, Guidance())


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
        make_generator(**arguments)


def test_latents_of_another_shape_are_refused():
    generator = make_generator("1,2,4", channels=4, patch_size=2)
    generator.check_latent(4, (8, 8))
    with pytest.raises(ValueError, match="must be 32, not 16"):
        generator.check_latent(8, (8, 8))
    with pytest.raises(ValueError, match="end at 4 tokens, but the latent has 8"):
        generator.check_latent(4, (16, 16))
    assert generator.schedule == ScaleSchedule.parse("1,2,4")
