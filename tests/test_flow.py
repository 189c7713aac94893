import math

import pytest
import torch

from scalear.flow import FlowSolver, euler, flowar_times, heun, interpolate, logit_normal, midpoint, uniform_times

# Noise levels (1 - t) of the official code for 25, and the whole thousandths that its network is given.
OFFICIAL_25 = [
    *(1.0, 0.9363636363636364, 0.8727272727272728, 0.8090909090909091, 0.7454545454545455, 0.6818181818181819),
    *(0.6181818181818182, 0.5545454545454545, 0.49090909090909085, 0.42727272727272725, 0.36363636363636365, 0.3),
    *(0.25, 0.22916666666666666, 0.20833333333333334, 0.1875, 0.16666666666666669, 0.14583333333333334, 0.125),
    *(0.10416666666666666, 0.08333333333333333, 0.0625, 0.041666666666666664, 0.020833333333333332, 0.0),
]
OFFICIAL_25_THOUSANDTHS = [
    *(1000, 936, 872, 809, 745, 681, 618, 554, 490, 427, 363, 300, 250, 229, 208, 187, 166, 145, 125, 104, 83),
    *(62, 41, 20),
]
OFFICIAL_10 = [1.0, 0.825, 0.65, 0.475, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.0]


def test_velocity_is_the_derivative_of_the_path():
    generator = torch.Generator().manual_seed(0)
    x_0, x_1 = (torch.randn(4, 3, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.rand(4, 1, 1, dtype=torch.float64, generator=generator)
    x_t, derivative = torch.func.jvp(lambda t: interpolate(x_0, x_1, t).x_t, (t,), (torch.ones_like(t),))
    sample = interpolate(x_0, x_1, t)
    torch.testing.assert_close(sample.velocity, derivative, rtol=0, atol=1e-15)
    torch.testing.assert_close(sample.x_t, x_0 + t * sample.velocity, rtol=0, atol=1e-15)


def test_the_path_leads_from_noise_to_data():
    x_0, x_1 = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(interpolate(x_0, x_1, torch.zeros(2, 1)).x_t, x_0)
    assert torch.equal(interpolate(x_0, x_1, torch.ones(2, 1)).x_t, x_1)


@pytest.mark.parametrize("method, order", [(euler, 1), (midpoint, 2), (heun, 2)])
def test_solvers_have_their_order(method, order):
    # dx/dt = (1 + t) x^2 has the solution 1 / (1 / x_0 - t - t^2 / 2).
    x_0 = torch.tensor([0.25, -2.0], dtype=torch.float64)
    exact = 1 / (1 / x_0 - 1.5)

    def error(num_steps: int) -> float:
        x_1 = method(lambda x, t: (1 + t) * x.square(), x_0, uniform_times(num_steps))
        return (x_1 - exact).abs().max().item()

    measured = math.log2(error(64) / error(128))
    assert measured == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("method, per_step", [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_a_straight_flow_is_solved_exactly_in_one_step(method, per_step):
    x_0, x_1 = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    seen = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        seen.append(t)
        return x_1 - x_0

    torch.testing.assert_close(FlowSolver(method, 1).solve(velocity, x_0, [0.0, 1.0]), x_1, rtol=0, atol=1e-14)
    assert len(seen) == per_step


def test_the_state_is_float64_and_the_result_is_not():
    dtypes = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        dtypes.append(x.dtype)
        return -x

    assert FlowSolver(num_steps=2).solve(velocity, torch.ones(1), [0.0, 0.5, 1.0]).dtype == torch.float32
    assert set(dtypes) == {torch.float64}


def test_uniform_grid():
    assert uniform_times(4) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_official_grid():
    times = flowar_times(25)
    assert len(times) == 25  # 24 steps
    assert [1.0 - t for t in times] == pytest.approx(OFFICIAL_25, rel=0, abs=1e-15)
    assert [1.0 - t for t in flowar_times(10)] == pytest.approx(OFFICIAL_10, rel=0, abs=1e-15)
    assert flowar_times(50) == uniform_times(50)
    assert len(flowar_times(100)) == 101


def test_official_grid_gives_the_official_whole_thousandths():
    levels = 1000.0 * (1.0 - torch.tensor(flowar_times(25), dtype=torch.float64)).float()
    assert levels.trunc().int().tolist() == [*OFFICIAL_25_THOUSANDTHS, 0]
    levels = 1000.0 * (1.0 - torch.tensor(flowar_times(50), dtype=torch.float64)).float()
    assert levels.trunc().int().tolist() == list(range(1000, -1, -20))


@pytest.mark.parametrize("grid", ["uniform", "flowar"])
@pytest.mark.parametrize("num_steps", [2, 7, 50])
def test_every_grid_rises_from_zero_to_one(grid, num_steps):
    times = FlowSolver(num_steps=num_steps, grid=grid).times(0, 1)
    assert times[0] == 0.0 and times[-1] == 1.0
    assert all(a < b for a, b in zip(times, times[1:], strict=False))


def test_steps_per_scale():
    solver = FlowSolver(num_steps=[1, 2, 4])
    assert [len(solver.times(k, 3)) - 1 for k in range(3)] == [1, 2, 4]
    with pytest.raises(ValueError, match=r"num_steps has 3 entries for 2 scales: \[1, 2, 4\]"):
        solver.times(0, 2)


@pytest.mark.parametrize("num_steps, grid, low", [(0, "uniform", 1), ([], "uniform", 1), ([3, 1], "flowar", 2)])
def test_too_few_steps_are_refused(num_steps, grid, low):
    with pytest.raises(ValueError, match=f"num_steps must be at least {low} on the {grid} grid"):
        FlowSolver(num_steps=num_steps, grid=grid)


def test_logit_normal_times_prefer_the_middle():
    times = logit_normal(torch.arange(10_000, dtype=torch.float64) / 10_000)
    assert times[0] == 0 and times[5_000] == 0.5 and times.max() < 1
    torch.testing.assert_close(times[1:] + times[1:].flip(0), torch.ones(9_999, dtype=torch.float64))
    # Half of all normal numbers are within 0.6745 of zero.
    assert times[2_500] == pytest.approx(1 / (1 + math.exp(0.6745)), abs=1e-4)
