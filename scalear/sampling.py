"""What the settings have in common with which heads sample: `scalear.flow.FlowSolver`, `scalear.token_sampling`."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from scalear.guidance import Guidance
from scalear.scales import ScaleSchedule


class Sampling(ABC):
    """How a head samples the content of a scale: a frozen dataclass, which its head names as `sampling_type`."""

    searched: ClassVar[dict[str, list[Any]]] = {}
    """Its fields that are worth a search, each with both ends of its range or with its choices."""
    guided_in_time: ClassVar[bool] = False
    """Whether guidance may set in and end between noise and data, at its `start_time` and `end_time`."""

    @abstractmethod
    def check(self, schedule: ScaleSchedule, guidance: Guidance) -> None:
        """Refuse scales that these settings are not for, and guidance that they would ignore.

        Raises:
            ValueError: Names the setting and the remedy.
        """

    def idle(self, schedule: ScaleSchedule) -> list[str]:
        """A line for each setting that the others leave without effect at these scales."""
        return []
