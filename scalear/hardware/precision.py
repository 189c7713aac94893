"""Which precision of matrix products is fastest here: measured, not looked up in a list of processors.

Where a machine multiplies bfloat16 in hardware, mixed precision is several times as fast as float32. Where it does not
(CPUs without AMX or AVX512-bf16, GPUs older than Ampere), the same products are emulated, hundreds of times slower.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal

import torch

from scalear.hardware.machine import describe, product_seconds

AUTO = "auto"
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
"""Of a model that runs without a Trainer: the fastest one here, or as in `trainer.precision`."""

MIXED_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What autocast turns matrix products into; other precisions have no autocast."""

_WORTH_ROUNDING = 1.5  # so many times as fast as float32 must bfloat16 be
_EMULATED = 0.2  # below, a large product would take seconds; above, small ones decide nothing
_SMALL, _LARGE = 128, 768  # sides of the products


def fastest(device: torch.device) -> str:
    """`bf16-mixed` where its products are at least 1.5 times as fast as float32's, else `32-true`."""
    return "bf16-mixed" if bf16_gain(device.type) >= _WORTH_ROUNDING else "32-true"


def is_emulated(precision: str | None, device: torch.device) -> bool:
    """Whether this device only emulates bfloat16, and so is slower in this precision than in float32."""
    return str(precision).startswith("bf16") and bf16_gain(device.type) < 1


def measured(device: torch.device) -> str:
    """In words: how fast bfloat16 is on this device."""
    return f"bf16 products are {bf16_gain(device.type):.2g} x as fast as float32's on {describe(device)}"


def warn_of_emulation(precision: str | None, device: torch.device) -> None:
    """One warning where somebody asks for bfloat16 on a device that emulates it, with the factor and the remedy."""
    if is_emulated(precision, device):
        slower = 1 / max(bf16_gain(device.type), 1e-9)
        warnings.warn(
            f"{precision} was asked for, but {measured(device)}, by emulation: 32-true is {slower:.0f} x as fast",
            stacklevel=3,
        )


def autocast(device: torch.device, precision: str | None = AUTO) -> AbstractContextManager:
    """Mixed precision as a Trainer would have it, for what runs without one. An autocast around it stays in force."""
    if torch.is_autocast_enabled(device.type):
        return nullcontext()
    warn_of_emulation(precision, device)
    dtype = MIXED_DTYPES.get(fastest(device) if precision == AUTO else precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@cache
def bf16_gain(device_type: str, seconds: Callable[[int, torch.dtype, torch.device], float] = product_seconds) -> float:
    """How many times as fast as a float32 product a bfloat16 one is. Measured once, in less than 0.3 s.

    Args:
        device_type: Such as "cpu" or "cuda".
        seconds: Times a product of a side, a dtype and a device.
    """
    device = torch.device(device_type)

    def gain(side: int) -> float:
        return seconds(side, torch.float32, device) / seconds(side, torch.bfloat16, device)

    try:
        small = gain(_SMALL)
        return small if small < _EMULATED else gain(_LARGE)
    except (RuntimeError, TypeError):  # how devices without bfloat16 refuse it
        return 0.0
