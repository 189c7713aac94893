"""What a search may change: settings of sampling and guidance, by the names that their options have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from scalear.class_paths import build_settings, settings_part
from scalear.guidance import Guidance
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule

Space = dict[str, list[Any]]
"""Settings by name: two numbers are the ends of a range, all else are choices."""
Values = dict[str, Any]
"""A value for each name of a space."""
_GUIDANCE = "model.guidance."
_GUIDANCE_SEARCHED: Space = {"weight": [1.0, 8.0], "ramp": ["linear", "constant"]}
_INTERVAL_SEARCHED: Space = {"start_time": [0.0, 0.5], "end_time": [0.6, 1.0]}


@dataclass(frozen=True)
class Settings:
    """How images are sampled."""

    guidance: Guidance
    sampling: Sampling

    def names(self) -> list[str]:
        """Of all settings: `model.guidance.weight` and so on."""
        return [f"model.{part.name}.{field.name}" for part in fields(self) for field in fields(self._part(part.name))]

    def __getitem__(self, name: str) -> Any:
        _, part, setting = name.split(".")
        return getattr(self._part(part), setting)

    def changed(self, values: Mapping[str, Any]) -> "Settings":
        """The same with other values, by the rules of a config.

        Raises:
            ValueError: A value is none for its setting.
        """
        parts = {part.name: settings_part(self._part(part.name)) for part in fields(self)}
        for name, value in values.items():
            _, part, setting = name.split(".")
            parts[part]["init_args"][setting] = value
        return Settings(**{name: build_settings(part) for name, part in parts.items()})

    def _part(self, name: str) -> Guidance | Sampling:
        return getattr(self, name)


def usual_space(sampling: type[Sampling]) -> Space:
    """What is searched unless told otherwise: guidance, and what a class of sampling says of itself."""
    guidance = _GUIDANCE_SEARCHED | (_INTERVAL_SEARCHED if sampling.guided_in_time else {})
    parts = {"guidance": guidance, "sampling": sampling.searched}
    return {f"model.{part}.{name}": entry for part, searched in parts.items() for name, entry in searched.items()}


def search_space(settings: Settings, schedule: ScaleSchedule, changes: Mapping[str, Any], num_classes: int) -> Space:
    """What is searched around settings: the usual space, and what a user wants otherwise.

    Args:
        settings: Those of a config.
        schedule: The scales to sample.
        changes: Ranges and choices by name; None takes a setting out of the search.
        num_classes: Of the model; without any there is nothing to guide to.

    Raises:
        ValueError: There is no such setting, it takes no such value, or nothing is left.
    """
    known, space, usual = settings.names(), {}, usual_space(type(settings.sampling))
    if not num_classes:
        usual = {name: entry for name, entry in usual.items() if not name.startswith(_GUIDANCE)}
    for name, entry in (usual | dict(changes)).items():
        if name not in known:
            raise ValueError(f"--search {name}: there is no such setting; there are {', '.join(known)}")
        if entry is None:
            continue
        if not num_classes and name.startswith(_GUIDANCE):
            raise ValueError(f"--search {name}: there are no classes to guide to: leave it out")
        if not isinstance(entry, list) or len(entry) < 2:
            raise ValueError(
                f"--search {name}: {entry} is neither a range, as in [1, 8], nor a list of choices; null leaves the "
                f"setting as the config has it, and --{name} sets it"
            )
        space[name] = list(_checked(settings, schedule, name, entry))
        if is_range(space[name]) and space[name][0] >= space[name][1]:
            raise ValueError(f"--search {name}: {entry} is no range, for its first end is not below the second")
    if not space:
        raise ValueError("--search leaves nothing to search: name a setting and its range or its choices")
    return space


def is_range(entry: list[Any]) -> bool:
    """Whether an entry of a space has all that lies between two numbers."""
    return len(entry) == 2 and all(isinstance(end, int | float) and not isinstance(end, bool) for end in entry)


def holds(entry: list[Any], value: Any) -> bool:
    """Whether an entry of a space has a value."""
    return value in entry if not is_range(entry) else isinstance(value, int | float) and entry[0] <= value <= entry[1]


def _checked(settings: Settings, schedule: ScaleSchedule, name: str, entry: list[Any]) -> Iterator[Any]:
    """Values as the setting has them: a whole number may become one with a fraction."""
    for value in entry:
        try:
            changed = settings.changed({name: value})
            changed.sampling.check(schedule, changed.guidance)
        except ValueError as error:
            raise ValueError(f"--search {name}: {value} cannot be taken: {error}") from error
        if not isinstance(changed[name], bool | int | float | str | None):
            raise ValueError(f"--search {name}: {value} cannot be searched: choices are numbers, texts and null")
        yield changed[name]
