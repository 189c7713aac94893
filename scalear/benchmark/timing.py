"""Seconds beside the machine's speed at that moment, and the memory of a process.

The yardstick is one matrix product in the precision of the run. It is timed before and after every repeat: on a machine
that throttles or is shared, seconds mean little, but work / (seconds x yardstick) still does.
"""

import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from scalear.hardware.machine import product_seconds

_SIDES = (64, 128, 256, 512, 1024, 2048)
_LONGEST = 0.25  # seconds of a product


@dataclass
class Timing:
    """Repeats of one job.

    Attributes:
        seconds: Of each repeat.
        yardsticks: TFLOP/s of the matrix product around each repeat, the mean of before and after.
    """

    seconds: list[float] = field(default_factory=list)
    yardsticks: list[float] = field(default_factory=list)

    def add(self, seconds: float, yardstick: float) -> None:
        """One more repeat."""
        self.seconds.append(seconds)
        self.yardsticks.append(yardstick)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def yardstick(self) -> float:
        return statistics.median(self.yardsticks)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def fraction(self, tflop: float) -> float:
        """Median over the repeats of work / (seconds x yardstick)."""
        pairs = zip(self.seconds, self.yardsticks, strict=True)
        return statistics.median(tflop / (seconds * yardstick) for seconds, yardstick in pairs)


def yardstick(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of the largest product up to 2048^3 that takes a quarter of a second at most."""
    side = _SIDES[0]
    seconds = product_seconds(side, dtype, device)
    for larger in _SIDES[1:]:
        if seconds * (larger / side) ** 3 > _LONGEST:
            break
        side, seconds = larger, product_seconds(larger, dtype, device)
    return 2 * side**3 / seconds / 1e12


def peak_rss_bytes() -> int:
    """Most memory that this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, without the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # which Windows has not

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
