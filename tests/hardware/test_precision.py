"""`auto` is what is faster here, is one choice per run, is recorded, and yields to what is typed."""

import pytest
import torch
import yaml
from cli_fixtures import Experiment, run
from model_fixtures import make_model

from scalear.hardware import precision
from scalear.hardware.machine import product_seconds
from scalear.image_model import ImageModel
from scalear.training import run_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("factor", "choice"), [(0.003, "32-true"), (1.4, "32-true"), (1.6, "bf16-mixed"), (9, "bf16-mixed")]
)
def test_the_faster_precision_is_chosen_by_timing(factor, choice, monkeypatch):
    def seconds(side: int, dtype: torch.dtype, device: torch.device) -> float:
        return side**3 / (factor if dtype == torch.bfloat16 else 1)

    measured = precision.bf16_gain.__wrapped__("cpu", seconds)
    assert measured == pytest.approx(factor)
    monkeypatch.setattr(precision, "bf16_gain", lambda device_type: measured)
    assert precision.fastest(CPU) == choice
    assert precision.is_emulated("bf16-mixed", CPU) == (factor < 1)


def test_a_large_product_is_not_tried_where_small_ones_are_emulated():
    sides = []

    def seconds(side: int, dtype: torch.dtype, device: torch.device) -> float:
        sides.append(side)
        return 100.0 if dtype == torch.bfloat16 else 1.0

    assert precision.bf16_gain.__wrapped__("cpu", seconds) == pytest.approx(0.01)
    assert set(sides) == {128}


def test_a_device_without_bfloat16_has_none():
    def seconds(side: int, dtype: torch.dtype, device: torch.device) -> float:
        if dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported")
        return 1.0

    assert precision.bf16_gain.__wrapped__("cpu", seconds) == 0


def test_measuring_disturbs_no_seeds():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert product_seconds(64, torch.float32, CPU) > 0
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("factor", "choice"), [(0.003, "32-true"), (4.0, "bf16-mixed")])
def test_a_run_records_what_auto_became_and_keeps_it(experiment: Experiment, gain, factor, choice, caplog):
    gain(factor)
    folder = f"auto-{choice}"
    auto = [*experiment.generator(folder), "--trainer.precision=auto"]
    assert run("fit", *auto, "--trainer.max_steps=2") == 0
    record = (experiment.root / folder / "fit.yaml").read_text()
    assert yaml.safe_load(record)["trainer"]["precision"] == choice
    assert f"# precision {choice}: bf16 products are {factor:.2g} x as fast" in record
    assert f"precision {choice}: bf16 products" in caplog.text
    checkpoint = experiment.checkpoint(folder)
    assert torch.load(checkpoint, weights_only=True)["precision"] == choice

    gain(0.5 if choice == "32-true" else 1.2)  # elsewhere auto would be 32-true, but the run goes on as it was
    resumed = [*auto, "--trainer.max_steps=3", f"--ckpt_path={checkpoint}"]
    assert run("fit", *resumed) == 0
    assert f"precision {choice}: that of {checkpoint}" in (experiment.root / folder / "fit.yaml").read_text()


def test_a_bfloat16_run_does_not_go_on_where_it_is_emulated(experiment: Experiment, gain, capsys):
    gain(4.0)
    auto = [*experiment.generator("bf16"), "--trainer.precision=auto", "--trainer.max_steps=1"]
    assert run("fit", *auto) == 0
    gain(0.003)
    resumed = [f"--ckpt_path={experiment.checkpoint('bf16')}", "--trainer.max_steps=2"]
    assert run("fit", *auto, *resumed) == 2
    assert (
        "resume it where bf16 is fast, or go on in float32 with --trainer.precision 32-true" in capsys.readouterr().err
    )
    assert run("fit", *auto, *resumed, "--trainer.precision=32-true") == 0


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_what_is_typed_wins(experiment: Experiment, gain, command):
    gain(4.0)  # auto would be bf16-mixed
    args = [*experiment.generator(f"typed-{command}"), "--trainer.precision=32-true"]
    if command != "fit":
        args.append(f"--ckpt_path={experiment.checkpoint('flowar')}")
    assert run(command, *args) == 0
    record = experiment.root / f"typed-{command}" / f"{command}.yaml"
    assert yaml.safe_load(record.read_text())["trainer"]["precision"] == "32-true"


def test_typing_what_is_emulated_gives_a_warning_with_the_factor(gain):
    gain(0.004)
    with pytest.warns(UserWarning, match=r"bf16 products are 0.004 x .* 32-true is 250 x as fast"):
        assert run_precision.resolve_precision("bf16-mixed", "cpu") == ("bf16-mixed", "")


def test_without_a_trainer_weights_and_callers_have_the_last_word(gain):
    def product_dtype(module: ImageModel, asked: str = "auto") -> torch.dtype:
        with module.autocast(asked):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    gain(4.0)
    model = make_model()
    assert product_dtype(model) == torch.bfloat16
    assert product_dtype(model, "32-true") == torch.float32
    with torch.autocast("cpu", torch.float16):
        assert product_dtype(model) == torch.float16
    gain(0.01)
    assert product_dtype(model) == torch.float32
    assert product_dtype(model.to(torch.bfloat16)) == torch.bfloat16
