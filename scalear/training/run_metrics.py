"""metrics.json of a run's folder: numbers, and what they were computed in and on."""

from math import isfinite
from pathlib import Path

from lightning.pytorch import Trainer

from scalear.files import write_json
from scalear.hardware.machine import describe as describe_machine


def write_metrics(trainer: Trainer, metrics: dict) -> None:
    """Write `metrics.json` into a run's folder: numbers, and what they were computed in and on.

    Not in a `fast_dev_run`, whose numbers are those of a few batches.

    Raises:
        ValueError: A number is NaN or infinite. Nothing is written then.
    """
    bad = [f"{name} is {value}" for name, value in metrics.items() if isinstance(value, float) and not isfinite(value)]
    if bad:
        raise ValueError(f"{', '.join(bad)}: no metrics.json is written; look at the images and the weights")
    if trainer.fast_dev_run:
        return
    computed = {"trainer_precision": str(trainer.precision), "machine": describe_machine(trainer.strategy.root_device)}
    write_json(Path(trainer.default_root_dir, "metrics.json"), metrics | computed)
