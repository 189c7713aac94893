"""What goes to loggers beside scalars: each gets what it can take, whichever it is."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger
from numpy.typing import NDArray


class RunLogger(TensorBoardLogger):
    """TensorBoard's events in the folder of a run, without the chart of epochs that Lightning adds to all others.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


def logs_now(trainer: Trainer, step: int) -> bool:
    """Whether `trainer.log_every_n_steps` names this step; 0 names none."""
    return bool(trainer.log_every_n_steps) and step % trainer.log_every_n_steps == 0


def log_image(loggers: Iterable[Logger], tag: str, image_HWC: NDArray, step: int) -> None:
    """An image, uint8, for those that take images. On rank 0."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image_HWC, step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image_HWC, key=tag, step=step)
        elif isinstance(logger, CometLogger):
            logger.experiment.log_image(image_HWC, name=tag, step=step)
        elif hasattr(logger, "log_image"):  # W&B, and what follows it
            logger.log_image(tag, [image_HWC], step=step)


def log_text(loggers: Iterable[Logger], tag: str, text: str) -> None:
    """A text for those that take texts. On rank 0."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text)


def log_config(loggers: Iterable[Logger], stage: str, config: dict[str, Any], text: str) -> None:
    """The resolved config of a stage for all: as text where texts are, else as hyperparameters. On rank 0."""
    log_text(loggers, f"config/{stage}", f"```\n{text}\n```")
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams({stage: config})
