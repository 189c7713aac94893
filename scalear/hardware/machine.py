"""What this machine is, and how fast it multiplies."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def best_device() -> torch.device:
    """The accelerator, if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def describe(device: torch.device) -> str:
    """The device and what PyTorch makes of it, as it stands beside numbers: "AMD EPYC, AVX512, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    cpu = f"{_cpu_name()}, {capability}, {threads} thread{'s' * (threads > 1)}"
    return cpu if device.type == "cpu" else f"{device.type} beside {cpu}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def stopwatch(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    _finish(device)
    start = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - start


def product_seconds(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of a matrix product of `side`^3, the best of five after one to warm up."""
    generator = torch.Generator().manual_seed(0)  # nothing that is seeded shall notice
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    return min([stopwatch(lambda: a @ b, device) for _ in range(6)][1:])


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
