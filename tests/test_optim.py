import pytest
import torch
from torch import nn

from scalear.training.optim import OptimizerSettings


def test_linear_schedule_with_a_plateau():
    settings = OptimizerSettings(
        lr=2.0, warmup_steps=4, warmup_start=0.2, constant_steps=2, schedule="linear", total_steps=16, final_lr=0.2
    )
    warmup = [0.4, 0.6, 0.8, 1.0]
    assert [settings.factor(step) for step in range(6)] == pytest.approx([*warmup, 1.0, 1.0])
    assert [settings.factor(step) for step in (6, 11, 16, 99)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_cosine_and_constant_schedules():
    cosine = OptimizerSettings(lr=1.0, warmup_steps=2, schedule="cosine", total_steps=6, final_lr=0.5)
    assert [cosine.factor(step) for step in (0, 1, 2, 4, 6, 9)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.5])
    assert [OptimizerSettings(warmup_steps=2).factor(step) for step in (0, 1, 2, 1000)] == [0.5, 1.0, 1.0, 1.0]


def test_weight_decay_moves_on_decayed_parameters_alone():
    settings = OptimizerSettings(weight_decay=0.04, final_weight_decay=0.08, total_steps=4)
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


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"constant_steps": -1}, "constant_steps >= 0"),
        ({"schedule": "cosine"}, "a cosine schedule needs total_steps > .*set optimizer.total_steps to trainer.max"),
        (
            {"schedule": "linear", "warmup_steps": 4, "constant_steps": 4, "total_steps": 8},
            r"constant_steps \(8\), got",
        ),
        ({"final_weight_decay": 0.1}, "final_weight_decay needs total_steps"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerSettings(**settings)
