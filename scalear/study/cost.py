"""What a study takes: from a step and an image of every row, timed once, to the hours of all."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from scalear.files import write_json
from scalear.study.plan import GeneratorRow, SamplingRow, Study, StudyRow

COST_NAME = "cost.json"
_LAST_JUDGED = 2  # measurements of a search beside its trials: of the config, and of the winner


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one row.

    Attributes:
        machine: Kind of machine that it was timed on.
        parameters: That are trained; None where nothing is, as of a sampling.
        seconds_per_step: Of the optimizer, with a batch as the config has it; or None.
        seconds_per_image: From noise to pixels, guided; None for a tokenizer.
    """

    machine: str
    parameters: int | None = None
    seconds_per_step: float | None = None
    seconds_per_image: float | None = None


def read_costs(folder: str | Path) -> dict[str, Cost]:
    """By name of the row; none where none were timed.

    Raises:
        ValueError: The file is none of costs.
    """
    path = Path(folder, COST_NAME)
    if not path.is_file():
        return {}
    try:
        return {name: Cost(**cost) for name, cost in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no costs of a study ({error}): remove it, and time the rows again") from error


def write_costs(folder: str | Path, costs: Mapping[str, Cost]) -> None:
    """Beside the results."""
    write_json(Path(folder, COST_NAME), {name: asdict(cost) for name, cost in costs.items()})


def hours(study: Study, costs: Mapping[str, Cost]) -> dict[str, float]:
    """Training, search and sampling of each row that was timed; without validation, measuring and starting.

    Args:
        study: Its rows.
        costs: By name of the row.

    Returns:
        Hours of all seeds, by name of the row.
    """
    found = {name: _seconds(row, costs) for name, row in study.rows.items()}
    return {name: seconds / 3600 for name, seconds in found.items() if seconds is not None}


def _seconds(row: StudyRow, costs: Mapping[str, Cost]) -> float | None:
    if (cost := costs.get(row.name)) is None:
        return None
    if isinstance(row, SamplingRow):
        return row.samples * cost.seconds_per_image
    seconds = len(row.seeds) * row.steps * cost.seconds_per_step
    if isinstance(row, GeneratorRow):
        tried = (row.group.trials + _LAST_JUDGED) * row.group.trial_samples if row.group.trials else 0
        seconds += (len(row.seeds) * row.group.samples + tried) * cost.seconds_per_image
    return seconds
