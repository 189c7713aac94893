import math

import pytest
import torch

from scalear.flow import FlowSolver, flowar_times, interpolate, late_times, logit_normal, uniform_times

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


@pytest.mark.parametrize("method, order", [("euler", 1), ("midpoint", 2), ("heun", 2), ("ab2", 2), ("ab3", 3)])
def test_solvers_have_their_order_on_uneven_times(method, order):
    # dx/dt = (1 + t) x^2 has the solution 1 / (1 / x_0 - t - t^2 / 2).
    x_0 = torch.tensor([0.25, -2.0], dtype=torch.float64)
    exact = 1 / (1 / x_0 - 1.5)

    def error(num_steps: int) -> float:
        # Short first steps: Adams-Bashforth makes them with a lower order.
        times = [t * t for t in uniform_times(num_steps)]
        x_1 = FlowSolver(method).solve(lambda x, t: (1 + t) * x.square(), x_0, times)
        return (x_1 - exact).abs().max().item()

    measured = math.log2(error(128) / error(256))
    assert measured == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("method, order", [("ab2", 2), ("ab3", 3)])
@pytest.mark.parametrize("power, exact", [(-1, True), (0, False)])
def test_adams_bashforth_is_exact_below_its_order_once_it_has_begun(method, order, power, exact):
    degree = order + power
    times = [0.0, 0.03, 0.11, 0.35, 0.4, 0.9, 1.0]

    def at(index: int) -> float:
        velocity = lambda x, t: torch.full_like(x, (degree + 1) * t**degree)  # noqa: E731
        return FlowSolver(method).solve(velocity, torch.zeros((), dtype=torch.float64), times[: index + 1]).item()

    for i in range(order - 1, 6):
        error = at(i + 1) - at(i) - (times[i + 1] ** (degree + 1) - times[i] ** (degree + 1))
        assert (abs(error) < 1e-14) == exact


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "ab2", "ab3"])
def test_a_jump_of_the_velocity_is_where_a_solver_starts_anew(method):
    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.full_like(x, 5.0 if t >= 0.3 else -2.0)

    def solve(**jump: float) -> float:
        times = [0.0, 0.1, 0.3 + 1e-12, 0.6, 1.0]
        return FlowSolver(method).solve(velocity, torch.zeros((), dtype=torch.float64), times, **jump).item()

    assert solve(jump=0.3) == pytest.approx(0.7 * 5 - 0.3 * 2)  # 2.9; across the jump Heun would give 3.6
    assert (solve() == pytest.approx(solve(jump=0.3))) == (method in ("euler", "midpoint"))
    assert solve(jump=2.0) == solve() == solve(end=2.0)
    assert solve(end=0.3) == pytest.approx(solve(jump=0.3))


@pytest.mark.parametrize("method, per_step", [("euler", 1), ("midpoint", 2), ("heun", 2), ("ab2", 1), ("ab3", 1)])
def test_a_straight_flow_is_solved_exactly(method, per_step):
    x_0, x_1 = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    seen = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        seen.append(t)
        return x_1 - x_0

    torch.testing.assert_close(FlowSolver(method).solve(velocity, x_0, [0.0, 1.0]), x_1, rtol=0, atol=1e-14)
    assert len(seen) == per_step
    torch.testing.assert_close(FlowSolver(method).solve(velocity, x_0, late_times(7)), x_1, rtol=0, atol=1e-14)
    assert len(seen) == 8 * per_step


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


@pytest.mark.parametrize("grid", ["uniform", "flowar", "late"])
@pytest.mark.parametrize("num_steps", [2, 7, 50])
@pytest.mark.parametrize("interval", [(0.0,), (0.1,), (1.0,), (0.0, 0.05), (0.1, 0.11), (0.3, 0.999), (0.0, 0.6)])
def test_every_grid_rises_from_zero_to_one(grid, num_steps, interval):
    times = FlowSolver(num_steps=num_steps, grid=grid).times(0, 1, *interval)
    assert times[0] == 0.0 and times[-1] == 1.0
    assert all(a < b for a, b in zip(times, times[1:], strict=False))


def test_late_steps_shrink_fourfold_from_where_guidance_sets_in():
    steps = torch.tensor(late_times(1000), dtype=torch.float64).diff()
    assert steps[0] / steps[-1] == pytest.approx(4, rel=0.01) and (steps.diff() < 0).all()
    assert late_times(4, jump=0.1) == pytest.approx([0, 0.1, 0.1 + 0.9 / 2, 0.1 + 0.9 * 0.8, 1])
    assert late_times(1, jump=0.1) == [0, 1] == late_times(1, jump=0.1, end=0.7)
    assert late_times(4, jump=0.1, end=0.7) == pytest.approx([0, 0.1, 0.55, 0.7, 1])
    assert len(FlowSolver("ab3", 8, "late").times(0, 3, jump=0.1)) == 9


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
