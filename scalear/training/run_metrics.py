"""metrics.json of a run's folder: numbers, and what they were computed in and on."""

import json
from pathlib import Path

from lightning.pytorch import Trainer

from scalear.data.index import write_atomically
from scalear.hardware.machine import describe as describe_machine


def write_metrics(trainer: Trainer, metrics: dict) -> None:
    """Write `metrics.json` into a run's folder: numbers, and what they were computed in and on."""
    computed = {"trainer_precision": str(trainer.precision), "machine": describe_machine(trainer.strategy.root_device)}
    write_json(Path(trainer.default_root_dir, "metrics.json"), metrics | computed)


def write_json(path: Path, content: dict) -> None:
    """Write a file for people and programs, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
