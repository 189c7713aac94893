"""What the command line says of settings that exist in several kinds."""

from pathlib import Path

import pytest
from cli_fixtures import run

ROOT = Path(__file__).parents[3]


def test_what_is_missing_is_named_as_it_is_typed(capsys):
    assert run("edit", "refine", "--label=1") == 2
    assert "these arguments are missing: image, out, config (-c)\n" in capsys.readouterr().err
    assert run("fit") == 2
    assert "these arguments are missing: config (-c)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config, typed, message",
    [
        ("flowar", "sampling.num_steps=0", "num_steps must be at least 1 on the late grid, got 0"),
        ("flexvar", "sampling.top_k=0", "top_k must be at least 1, got 0; null keeps all codes"),
        ("flexvar", "sampling.top_k=abc", "error: model.sampling.top_k must be int or null, got abc\n"),
        ("flexvar", "optimizer.schedule=abc", "model.optimizer.schedule must be constant or cosine or linear, got abc"),
        ("flexvar", "sampling.num_steps=4", "Option 'num_steps' is not accepted"),
        ("flexvar", "sampling=FlowSolver", "TokenHead cannot sample with FlowSolver"),
        ("flexvar", "sampling.nosuch=4", "Option 'nosuch' is not accepted"),
        ("flexvar", "report=7", "error: model.report: there is no class 7: name one of scalear's, or another one with"),
        ("flexvar", "samples.scales=1,4,2", "scale 2 follows 4 in 1,4,2"),
    ],
)
def test_the_error_is_that_of_the_kind_that_was_meant(monkeypatch, capsys, config, typed, message):
    monkeypatch.chdir(ROOT)
    assert run("fit", "-c", f"configs/fashion/{config}.yaml", f"--model.{typed}") == 2
    error = capsys.readouterr().err
    assert message in error and "Union" not in error


@pytest.mark.parametrize(
    "typed, message",
    [
        (["precision=half"], "trainer.precision must be int, "),
        (
            ["precision=half"],
            "16-mixed, bf16-true, bf16-mixed, 32-true, 64-true, 64, 32, 16, bf16, auto or null, got half",
        ),
        (["gradient_clip_val=abc"], "trainer.gradient_clip_val must be int, float or null, got abc"),
        (["accumulate_grad_batches=1.5"], "trainer.accumulate_grad_batches must be int, got 1.5"),
        (["deterministic=maybe"], "trainer.deterministic must be true, false, warn or null, got maybe"),
        (["fast_dev_run=maybe"], "trainer.fast_dev_run must be int, true or false, got maybe"),
        (["callbacks=5"], "trainer.callbacks: there is no class 5"),
        (["callbacks+=EMA", "callbacks.decay=abc"], "trainer.callbacks.decay must be float, got abc"),
        (["callbacks={class_path: EMA, init_args: {decay: abc}}"], "trainer.callbacks.decay must be float, got abc"),
        (["callbacks=[{class_path: EMA, init_args: {nosuch: 3}}]"], "Option 'nosuch' is not accepted"),
        (["logger=lightning.pytorch.loggers.CSVLogger", "logger.nosuch=3"], "Option 'nosuch' is not accepted"),
        (["strategy=lightning.pytorch.strategies.DDPStrategy", "strategy.x=3"], "Option 'x' is not accepted"),
    ],
)
def test_settings_of_the_trainer_that_may_be_of_several_kinds(monkeypatch, capsys, typed, message):
    monkeypatch.chdir(ROOT)
    assert run("fit", "-c", "configs/fashion/flowar.yaml", *(f"--trainer.{option}" for option in typed)) == 2
    error = capsys.readouterr().err
    assert message in error and "Union" not in error and "Traceback" not in error


@pytest.mark.parametrize(
    "config, typed, message",
    [
        ("flexvar", ["model.samples.grid_rows=0"], "grid_rows must be at least 1, got None, 2000, 250, None, 0"),
        ("flexvar", ["model.samples.grid_columns=-1"], "must be at least 1, got None, 2000, 250, -1, 10"),
        ("kl", ["model.statistics_samples=0"], "need statistics_samples >= 1 and grid_images >= 0, got 0 and 16"),
        ("flexvar", ["trainer.callbacks+=SampleGrid", "trainer.callbacks.max_classes=0"], "1, got 500, 4 and 0"),
        ("vq", ["trainer.callbacks+=ScalePicture", "trainer.callbacks.num_images=0"], "at least 1, got 0 and 2"),
        ("kl", ["trainer.callbacks+=LatentWriter", "trainer.callbacks.block_size=0"], "at least 1, got 0 and 32"),
    ],
)
def test_a_count_of_nothing_is_refused_before_any_work(monkeypatch, capsys, config, typed, message):
    monkeypatch.chdir(ROOT)
    assert run("fit", "-c", f"configs/fashion/{config}.yaml", *(f"--{option}" for option in typed)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "written, instead, message",
    [
        (
            "pyramid: CodePyramid",
            "pyramid: CodePyramide",
            "model.pyramid: there is no class CodePyramide: did you mean",
        ),
        ("VARBlock", "VARBlok", "model.transformer.block: there is no class VARBlok: did you mean VARBlock?"),
        ("{class_path: EMA", "{class_path: EMAA", "trainer.callbacks: there is no class EMAA: did you mean EMA?"),
        ("TokenHead", "scalear.models.token_head.Hed", "no class scalear.models.token_head.Hed: did you mean Head?"),
        ("TokenHead", "nosuch.Head", "model.head: there is no class nosuch.Head: is its module where Python looks"),
        ("TokenHead", "CodePyramid", "model.head cannot be a CodePyramid: name a class of the kind that belongs there"),
        ("positions: GridPositions", "positions: null", "these arguments are missing: model.transformer.positions"),
        ("guidance: {", "guidance: null  # {", "model.guidance cannot be null: write {} for its defaults"),
        ("label_drop_prob: 0.1", "label_drop_prob: null", "model.label_drop_prob cannot be null: leave it out"),
    ],
)
def test_a_mistake_in_a_config_is_one_line_with_its_place_and_the_remedy(
    monkeypatch, tmp_path, capsys, written, instead, message
):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "configs/fashion/flexvar.yaml").read_text()
    assert written in text
    (tmp_path / "config.yaml").write_text(text.replace(written, instead, 1))
    assert run("fit", "-c", tmp_path / "config.yaml") == 2
    error = capsys.readouterr().err
    line, *rest = error[error.index("scalear: error:") :].splitlines()
    assert message in line and rest in ([], ["scalear fit --help lists the options"])
