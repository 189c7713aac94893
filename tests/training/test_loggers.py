"""What each logger is given: stand-ins for packages that are not installed, and these themselves where they are."""

from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from scalear.training.loggers import log_config, log_image, logs_now

IMAGE = np.zeros((4, 6, 3), np.uint8)


class Experiment:
    """Takes images and texts by any name, and remembers the calls."""

    def __init__(self) -> None:
        self.calls = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def stand_in(kind: type, **attributes):
    """A logger of this kind that is not connected to anything."""
    attributes |= {"experiment": Experiment(), "log_hyperparams": None}
    logger = type("StandIn", (kind,), attributes)
    return object.__new__(logger)


@pytest.mark.parametrize(
    "kind, call",
    [
        (TensorBoardLogger, ("add_image", ("tag", IMAGE, 3), {"dataformats": "HWC"})),
        (MLFlowLogger, ("log_image", ("run", IMAGE), {"key": "tag", "step": 3})),
        (CometLogger, ("log_image", (IMAGE,), {"name": "tag", "step": 3})),
    ],
)
def test_images_go_to_those_that_take_them(kind, call):
    logger = stand_in(kind, run_id="run")
    log_image([logger, CSVLogger("unused")], "tag", IMAGE, 3)
    assert logger.experiment.calls == [call]


def test_images_go_to_loggers_that_take_them_as_wandb_does():
    calls = []
    logger = SimpleNamespace(log_image=lambda *args, **kwargs: calls.append((args, kwargs)))
    log_image([logger], "tag", IMAGE, 3)
    assert calls == [(("tag", [IMAGE]), {"step": 3})]


def test_the_config_goes_to_all():
    board, given = stand_in(TensorBoardLogger), []
    other = SimpleNamespace(log_hyperparams=given.append)
    log_config([board, other], "fit", {"model": 1}, "model: 1")
    assert board.experiment.calls == [("add_text", ("config/fit", "```\nmodel: 1\n```"), {})]
    assert given == [{"fit": {"model": 1}}]


@pytest.mark.integration
def test_wandb_itself_keeps_images_and_the_config(tmp_path):
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(project="faces", save_dir=tmp_path, offline=True)
    log_image([logger], "samples/fixed", IMAGE, 3)
    log_config([logger], "fit", {"model": {"lr": 1}}, "model: {lr: 1}")
    assert dict(logger.experiment.config)["fit"] == {"model": {"lr": 1}}
    wandb.finish()
    assert len(list(tmp_path.rglob("media/images/samples/fixed_*.png"))) == 1


@pytest.mark.integration
def test_mlflow_itself_keeps_images_and_the_config(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}")
    log_image([logger], "samples/fixed", IMAGE, 3)
    log_config([logger], "fit", {"model": {"lr": 1}}, "model: {lr: 1}")
    assert (tmp_path / logger.experiment_id / logger.run_id / "params/fit/model/lr").read_text() == "1"
    assert len(list(tmp_path.rglob("artifacts/images/samples*fixed*.png"))) == 1


@pytest.mark.parametrize("every, steps", [(0, []), (2, [2, 4]), (1, [1, 2, 3, 4])])
def test_steps_that_are_logged(every, steps):
    trainer = SimpleNamespace(log_every_n_steps=every)
    assert [step for step in range(1, 5) if logs_now(trainer, step)] == steps
