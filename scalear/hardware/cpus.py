"""How many CPUs this process may use: no more than its container allows. Does not import PyTorch."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def allowed_cpus() -> int:
    """CPUs that this process may use: of the machine, of its affinity, and of the limit of its container."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([own, *map(math.ceil, _container_limits())]))


def respect_container() -> None:
    """Let PyTorch, before it is imported, start no more threads than the container allows CPUs.

    Left alone it takes as many as the machine has, which then wait for each other. A typed OMP_NUM_THREADS stays.
    """
    limits = list(_container_limits())
    if limits and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(allowed_cpus())


def _container_limits() -> Iterator[float]:
    """CPUs that each control group around this process allows; nothing on systems without them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(",") or not controllers:
            group = _CGROUPS / ("cpu" if controllers else "") / path.strip("/")
            for folder in (group, *group.parents):
                yield from _limit(folder)


def _limit(group: Path) -> Iterator[float]:
    """Of one control group, if it has one: quota over period, in a file each in version 1, in one in version 2."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    except (OSError, ValueError):
        return
    if quota != "max" and int(quota) > 0:
        yield int(quota) / int(period)
