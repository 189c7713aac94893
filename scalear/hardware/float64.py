"""Where float64 is to be had: Apple's GPUs (MPS) have none."""

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = {"mps"}  # types of devices


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def in_float64(x: Tensor) -> Tensor:
    """The same numbers in float64, on the CPU if their device has none: for what float32 would get wrong."""
    # Moved first: a device without float64 cannot cast to it on the way.
    return x.double() if widest_float(x.device) == torch.float64 else x.cpu().double()
