"""metrics.json of a run's folder: numbers, and what they were computed in and on."""

from pathlib import Path

from lightning.pytorch import Trainer

from scalear.files import write_json
from scalear.hardware.machine import describe as describe_machine


def write_metrics(trainer: Trainer, metrics: dict) -> None:
    """Write `metrics.json` into a run's folder: numbers, and what they were computed in and on.

    Not in a `fast_dev_run`, whose numbers are those of a few batches.
    """
    if trainer.fast_dev_run:
        return
    computed = {"trainer_precision": str(trainer.precision), "machine": describe_machine(trainer.strategy.root_device)}
    write_json(Path(trainer.default_root_dir, "metrics.json"), metrics | computed)
