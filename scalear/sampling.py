"""What the settings have in common with which heads sample: `scalear.flow.FlowSolver`, `scalear.token_sampling`."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from scalear.guidance import Guidance
from scalear.scales import ScaleSchedule


class Sampling(ABC):
    """How a head samples the content of a scale: a frozen dataclass, which its head names as `sampling_type`."""

    searched: ClassVar[dict[str, list[Any]]] = {
        "model.guidance.weight": [1.0, 8.0],
        "model.guidance.ramp": ["linear", "constant"],
    }
    """What `scalear tune` searches unless told otherwise: settings by name, each with both ends of its range or with
    its choices."""

    @abstractmethod
    def check(self, schedule: ScaleSchedule, guidance: Guidance) -> None:
        """Refuse scales that these settings are not for, and guidance that they would ignore.

        Raises:
            ValueError: Names the setting and the remedy.
        """

    def idle(self, schedule: ScaleSchedule) -> list[str]:
        """A line for each setting that the others leave without effect at these scales."""
        return []
