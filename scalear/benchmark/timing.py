"""Seconds beside the machine's speed at that moment, and the memory of a process.

The yardstick is one 2048 x 2048 x 2048 matrix product in bfloat16. It is timed before and after every repeat: on a
machine that throttles or is shared, seconds mean little, but work / (seconds x yardstick) still does.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

_SIDE = 2048
_PRODUCTS = 3


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


def yardstick(device: torch.device) -> float:
    """TFLOP/s of the bfloat16 product, median of a few after one to warm up."""
    a, b = (torch.randn(_SIDE, _SIDE, device=device).bfloat16() for _ in range(2))
    seconds = [stopwatch(lambda: a @ b, device) for _ in range(_PRODUCTS + 1)][1:]
    return 2 * _SIDE**3 / statistics.median(seconds) / 1e12


def stopwatch(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_rss_bytes() -> int:
    """Most memory that this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, without the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
