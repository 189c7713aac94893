"""Diffusion by itself, against diffusers and against what can be known."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from scalear.diffusion import DDIM, NUM_STEPS, levels

SCHEDULES = {"cosine": {"beta_schedule": "squaredcos_cap_v2"}, "linear": {"beta_start": 1e-4, "beta_end": 0.02}}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_are_those_of_diffusers(schedule):
    signal, noise = levels(schedule).unbind(1)
    torch.testing.assert_close(signal.square() + noise.square(), torch.ones(NUM_STEPS + 1, dtype=torch.float64))
    assert (signal[0], noise[0]) == (1, 0) and (signal.diff() < 0).all() and signal[-1] < 0.01
    theirs = DDIMScheduler(**SCHEDULES[schedule]).alphas_cumprod
    torch.testing.assert_close(signal[1:].square().float(), theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("limit", [0.5, float("inf")])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_are_those_of_diffusers(schedule, limit):
    """Where the number of steps divides 1000."""
    clip = {"clip_sample": limit < 1, "clip_sample_range": limit}
    scheduler = DDIMScheduler(**SCHEDULES[schedule], **clip)
    scheduler.set_timesteps(10)
    noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def guess(x: Tensor, step: int) -> Tensor:
        return torch.tanh(x * (0.5 + step / NUM_STEPS)) + 0.1

    theirs = noise
    for step in scheduler.timesteps.tolist():
        predicted = guess(theirs, step)
        theirs = scheduler.step(predicted, step, theirs, use_clipped_model_output=True).prev_sample
    sampling = DDIM(10, limit)
    times = sampling.times(1, 3)
    ours = sampling.solve(lambda x, t: guess(x, round(NUM_STEPS * (1 - t)) - 1), noise, times, schedule)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_steps", [1, 7, 25, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_who_knows_the_data_is_led_to_it(schedule, num_steps):
    sampling, data = DDIM(num_steps), torch.tensor([1.5, -0.3], dtype=torch.float64)
    seen = []

    def predict(x: Tensor, t: float) -> Tensor:
        signal, noise = levels(schedule)[round(NUM_STEPS * (1 - t))]
        seen.append((t, x))
        return (x - signal * data) / noise

    times = sampling.times(0, 1, 0.1, 0.9)
    assert len(times) == num_steps + 1 and times[-1] == 1 and times == sorted(times)
    torch.testing.assert_close(sampling.solve(predict, torch.tensor([0.2, 2.0]), times, schedule), data.float())
    assert [t for t, _ in seen] == times[:-1] and seen[0][1].dtype == torch.float64


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_steps": 0}, "num_steps of DDIM must be from 1 to 1000, got 0"),
        ({"num_steps": 1001}, "got 1001"),
        ({"limit": 0}, "limit of DDIM must be positive, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DDIM(**settings)
