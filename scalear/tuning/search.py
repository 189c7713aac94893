"""The search: what to try next, and a record of what was tried, from which a killed search goes on."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from scalear.draws import stream_seed
from scalear.files import write_json
from scalear.tuning.judge import SECONDS
from scalear.tuning.space import Settings, Space, Values, holds, is_range

optuna.logging.set_verbosity(optuna.logging.WARNING)

_AT_RANDOM = 5  # trials before the sampler learns from them
_DRAWS = 100  # of which none is new: then a small space counts as tried


START = 0
"""Number of the trial that has the settings of the config."""


@dataclass(frozen=True)
class Goal:
    """What a search is for.

    Attributes:
        number: To bring as far as it goes.
        better: Which way it is good.
        pareto: Search the front of this number and the seconds per image.
    """

    number: str
    better: Literal["lower", "higher"]
    pareto: bool = False

    def cost(self, numbers: dict[str, float]) -> float:
        """The number so that less is better."""
        return numbers[self.number] * (1 if self.better == "lower" else -1)

    def costs(self, numbers: dict[str, float]) -> list[float]:
        """All that is to become less."""
        return [self.cost(numbers), *([numbers[SECONDS]] if self.pareto else [])]


@dataclass
class Trial:
    """Settings that were tried."""

    values: Values
    numbers: dict[str, float]
    """What the search measured of them; none where they failed in it."""
    failure: str | None = None
    """What was wrong with them, in the search or after it."""
    minutes: float = 0.0
    """That they took."""


@dataclass
class SearchRecord:
    """What was tried, in a file that is written anew after each trial.

    Attributes:
        path: The file.
        origin: What the numbers follow from, by dotted names.
        trials: The first one has the settings of the config.
        judged: Numbers on other noise and other real images, by the number of the trial.
        machines: Where all of this was done, which seconds depend on.
    """

    path: Path
    origin: dict[str, Any]
    trials: list[Trial] = field(default_factory=list)
    judged: dict[int, dict[str, float]] = field(default_factory=dict)
    machines: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "SearchRecord":
        """What is there.

        Raises:
            ValueError: It is no record of a search.
        """
        try:
            stored = json.loads(path.read_text())
            trials = [Trial(**trial) for trial in stored["trials"]]
            judged = {int(number): numbers for number, numbers in stored["judged"].items()}
            return cls(path, stored["origin"], trials, judged, stored["machines"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no record of a search ({error}): begin anew with --force") from error

    def write(self) -> None:
        """Write the file."""
        write_json(self.path, {name: value for name, value in asdict(self).items() if name != "path"})

    def measured(self) -> dict[int, Trial]:
        """Trials that did not fail, by number."""
        return {number: trial for number, trial in enumerate(self.trials) if trial.failure is None}

    def winner(self, goal: Goal) -> int:
        """Number of the best trial; of equals the quickest."""
        found = self.measured()
        return min(found, key=lambda number: (goal.cost(found[number].numbers), found[number].numbers[SECONDS]))


def suggest(space: Space, trials: list[Trial], goal: Goal, seed: int) -> Values | None:
    """What to try next, by a tree-structured Parzen estimator (Bergstra et al. 2011), after some trials at random.

    It follows from the arguments alone, so that a search that was killed goes on as if it had not been.

    Args:
        space: What is searched.
        trials: What was tried.
        goal: What for.
        seed: Of the whole search.

    Returns:
        Values that were not tried; None where all that came up in many draws were.
    """
    distributions = {name: _distribution(entry) for name, entry in space.items()}
    tried = [trial.values for trial in trials]
    for attempt in range(_DRAWS):
        number = stream_seed((seed, len(trials), attempt)) % 2**32
        if attempt == 0:
            sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=_AT_RANDOM)
        else:  # it came back to what was tried
            sampler = optuna.samplers.RandomSampler(seed=number)
        study = optuna.create_study(sampler=sampler, directions=["minimize"] * (1 + goal.pareto))
        study.add_trials([_told(trial, space, distributions, goal) for trial in trials if trial.failure is None])
        values = {name: _short(value, space[name]) for name, value in study.ask(distributions).params.items()}
        if values not in tried:
            return values
    return None


def search(
    record: SearchRecord,
    space: Space,
    goal: Goal,
    start: Settings,
    measure: Callable[[Settings], dict[str, float]],
    seed: int = 0,
    max_trials: int = 30,
    max_minutes: float | None = None,
) -> None:
    """Try settings until the budget is spent, that of earlier calls included.

    Args:
        record: What was tried, and will be.
        space: What is searched.
        goal: What for.
        start: Settings of the config, which come first.
        measure: Gives the numbers of settings.
        seed: Of what is tried.
        max_trials: Of all, the first included.
        max_minutes: After which no trial begins; None sets no limit.

    Raises:
        ValueError: The settings of the config fail.
    """
    trials = record.trials
    while len(trials) < max_trials and sum(trial.minutes for trial in trials) < (max_minutes or math.inf):
        values = suggest(space, trials, goal, seed) if trials else {name: start[name] for name in space}
        if values is None:
            print("there is nothing left to try", file=sys.stderr)
            return
        began, trial = time.monotonic(), Trial(values, {})
        try:
            trial.numbers = measure(start.changed(values))
        except ValueError as error:
            if not trials:
                raise
            trial.failure = str(error)
        trial.minutes = (time.monotonic() - began) / 60
        trials.append(trial)
        record.write()
        told = trial.failure or ", ".join(f"{name} {value:.4g}" for name, value in trial.numbers.items())
        left = max_trials - len(trials)
        print(f"trial {len(trials) - 1}, {left} left: {told}  ({_in_words(values)})", file=sys.stderr)


def judge_winner(
    record: SearchRecord, goal: Goal, start: Settings, measure: Callable[[Settings], dict[str, float]]
) -> None:
    """Measure the winner where the search did not look; one that fails there is none.

    Args:
        record: What was tried, with the numbers that the settings of the config reach there.
        goal: What for.
        start: Settings of the config.
        measure: Gives the numbers there.
    """
    while (winner := record.winner(goal)) not in record.judged:
        trial = record.trials[winner]
        try:
            record.judged[winner] = measure(start.changed(trial.values))
        except ValueError as error:
            trial.failure = str(error)
            print(f"trial {winner}, the winner so far, fails on other noise: {error}", file=sys.stderr)
        record.write()


def _in_words(values: Values) -> str:
    """Settings by the ends of their names, in a line."""
    words = {name.rpartition(".")[2]: "null" if value is None else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in words.items())


def _distribution(entry: list[Any]) -> BaseDistribution:
    if not is_range(entry):
        return CategoricalDistribution(entry)
    return IntDistribution(*entry) if isinstance(entry[0], int) else FloatDistribution(*entry)


def _told(
    trial: Trial, space: Space, distributions: dict[str, BaseDistribution], goal: Goal
) -> optuna.trial.FrozenTrial:
    """A trial as the sampler takes it: without what the config has outside of the space."""
    inside = {name: value for name, value in trial.values.items() if holds(space[name], value)}
    return optuna.trial.create_trial(
        params=inside, distributions={name: distributions[name] for name in inside}, values=goal.costs(trial.numbers)
    )


def _short(value: Any, entry: list[Any]) -> Any:
    """Three digits of a number with a fraction, which say all that there is to know, within its range."""
    if not (is_range(entry) and isinstance(value, float)):
        return value
    return min(max(float(f"{value:.3g}"), entry[0]), entry[1])
