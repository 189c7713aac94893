import pytest
import torch
from torch import nn

from scalear.training.optim import OptimizerSettings, RunLength


def resolved(run: RunLength | None = None, **settings) -> OptimizerSettings:
    return OptimizerSettings(**settings).resolve(run or RunLength())


def test_linear_schedule_with_a_plateau():
    settings = resolved(
        lr=2.0, warmup_steps=4, warmup_start=0.2, constant_steps=2, schedule="linear", total_steps=16, final_lr=0.2
    )
    warmup = [0.4, 0.6, 0.8, 1.0]
    assert [settings.factor(step) for step in range(6)] == pytest.approx([*warmup, 1.0, 1.0])
    assert [settings.factor(step) for step in (6, 11, 16, 99)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_cosine_and_constant_schedules():
    cosine = resolved(lr=1.0, warmup_steps=2, schedule="cosine", total_steps=6, final_lr=0.5)
    assert [cosine.factor(step) for step in (0, 1, 2, 4, 6, 9)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.5])
    assert [resolved(lr=1.0, warmup_steps=2).factor(step) for step in (0, 1, 2, 1000)] == [0.5, 1.0, 1.0, 1.0]


def test_weight_decay_moves_on_decayed_parameters_alone():
    settings = OptimizerSettings(lr=0.1, weight_decay=0.04, final_weight_decay=0.08, total_steps=4)
    built = settings.build(nn.Linear(2, 2))
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(6):
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert [decayed for decayed, _ in seen] == pytest.approx([0.04, 0.04586, 0.06, 0.07414, 0.08, 0.08], rel=1e-3)
    assert {plain for _, plain in seen} == {0.0}
    torch.save(scheduler.state_dict(), "/dev/null")


RUN = RunLength(global_batch=512, steps_per_epoch=2.5, total_steps=1000)


def test_numbers_of_papers_become_steps():
    settings = resolved(
        RUN, base_lr=1e-4, warmup_ratio=0.02, constant_ratio=0.05, schedule="linear", final_lr_ratio=0.1
    )
    assert (settings.lr, settings.final_lr) == pytest.approx((2e-4, 2e-5))
    assert (settings.warmup_steps, settings.constant_steps, settings.total_steps) == (20, 49, 1000)
    assert resolved(RUN, base_lr=4.5e-6, base_batch=1).lr == pytest.approx(512 * 4.5e-6)
    assert resolved(RUN, warmup_epochs=100).warmup_steps == 250


def test_numbers_that_are_given_come_first():
    papers = {"base_lr": 1.0, "warmup_epochs": 9.0, "warmup_ratio": 0.5, "constant_ratio": 0.5, "final_lr_ratio": 0.5}
    given = {"lr": 1e-3, "warmup_steps": 0, "constant_steps": 0, "final_lr": 0.0, "total_steps": 7}
    settings = resolved(RUN, schedule="cosine", **papers, **given)
    assert {name: getattr(settings, name) for name in given} == given


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_ends_with_the_run_or_says_where(schedule):
    settings = OptimizerSettings(lr=1.0, warmup_steps=10, schedule=schedule)
    assert [settings.resolve(RUN).factor(step) for step in (10, 1000)] == pytest.approx([1.0, 0.0])
    assert settings.describe(RUN).endswith("at step 1000, where the run ends")
    for total, message in ((500, "step 500, before the run, which ends at step 1000"), (2000, "after the run")):
        assert message in OptimizerSettings(lr=1.0, schedule=schedule, total_steps=total).describe(RUN)


def test_a_run_may_end_within_its_warm_up():
    short = RunLength(total_steps=5)
    settings = OptimizerSettings(lr=1.0, warmup_steps=10, schedule="cosine")
    assert [settings.resolve(short).factor(step) for step in (0, 4)] == pytest.approx([0.1, 0.5])
    assert "before any decay" in settings.describe(short)


def test_settings_without_effect_are_said():
    assert "final_lr is not used" in OptimizerSettings(lr=1.0, final_lr=0.1).describe(RUN)
    both = OptimizerSettings(lr=1.0, base_lr=2e-4, warmup_steps=0, warmup_epochs=9.0, warmup_ratio=0.5)
    assert "base_lr is not used, for lr is given, " in both.describe(RUN)
    for name in ("warmup_epochs", "warmup_ratio"):
        assert f"{name} is not used, for warmup_steps is given" in both.describe(RUN)
    assert "is not used" not in OptimizerSettings(lr=1.0, warmup_steps=5).describe(RUN)


@pytest.mark.parametrize(
    "settings, name",
    [
        ({}, "lr"),
        ({"lr": 1.0, "schedule": "cosine"}, "total_steps"),
        ({"lr": 1.0, "final_weight_decay": 0.1}, "total_steps"),
        ({"lr": 1.0, "warmup_ratio": 0.1}, "total_steps"),
        ({"lr": 1.0, "warmup_epochs": 1.0}, "warmup_steps"),
    ],
)
def test_what_follows_from_nothing_is_refused(settings, name):
    with pytest.raises(ValueError, match=f"set optimizer.{name}$"):
        resolved(**settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lr": 0.0}, "optimizer.lr must be positive"),
        ({"constant_steps": -1}, "constant_steps must be >= 0"),
        ({"warmup_ratio": 2.0}, "warmup_ratio is a share, from 0 to 1, got 2"),
        (
            {"schedule": "linear", "warmup_steps": 4, "constant_steps": 4, "total_steps": 8},
            r"constant_steps \(8\), got 8: leave optimizer.total_steps out",
        ),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerSettings(**settings)
