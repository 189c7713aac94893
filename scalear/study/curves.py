"""What TensorBoard's files of a run tell: its loss, how long its steps took, and how many parameters learned."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalear.yaml_files import read_yaml

_POINTS = 100  # of a curve, at most
_HPARAMS = "hparams.yaml"  # of Lightning's TensorBoardLogger


@dataclass(frozen=True)
class TrainingRecord:
    """Of a run that may have been stopped and continued.

    Attributes:
        loss: Steps and mean losses, thinned.
        seconds_per_image: Of optimizer steps, without validation.
        parameters: That were trained.
    """

    loss: list[tuple[int, float]]
    seconds_per_image: float
    parameters: int


def training_record(folder: str | Path) -> TrainingRecord:
    """Read the events in a run's folder.

    Raises:
        ValueError: There are none, or they stop before anything was logged.
    """
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()

    def scalars(tag: str) -> dict[int, float]:
        # Of steps that were taken twice, because a run was stopped between them and its checkpoint, the last counts.
        return {event.step: event.value for event in events.Scalars(tag)}

    try:
        rates = scalars("perf/images_per_second").values()
        loss = scalars("train/loss")
    except KeyError as error:
        raise ValueError(
            f"the events in {folder} have no {error}: train for at least trainer.log_every_n_steps"
        ) from error
    parameters = read_yaml(Path(folder, _HPARAMS))["trainable_parameters"]
    return TrainingRecord(thinned(sorted(loss.items())), fmean(1 / rate for rate in rates), parameters)


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most a hundred points: means of as many neighbours each, at the last of their steps."""
    size = -(-len(points) // _POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(group[-1][0], round(fmean(value for _, value in group), 5)) for group in groups]
