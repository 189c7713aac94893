"""What an unfinished pyramid has left behind in the transformer: an explicit argument of `ScaleTransformer.step`.

Legend: B batch, N heads, L tokens of all scales, l of one scale, d head width.
"""

import torch
from torch import Tensor

from scalear.scales import ScaleSchedule


class LayerCache:
    """Keys and values that one attention layer has seen, in memory allocated once.

    Args:
        shape: (B, N, L, d) for all tokens that will come.
        device: Of keys and values.
        dtype: Of keys and values.
    """

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> None:
        self._keys, self._values = torch.empty((2, *shape), device=device, dtype=dtype)
        self._length = 0

    def append(self, k_BNld: Tensor, v_BNld: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of one more scale; views of everything stored so far."""
        end = self._length + k_BNld.shape[2]
        self._keys[:, :, self._length : end] = k_BNld
        self._values[:, :, self._length : end] = v_BNld
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class Cache:
    """The caches of all blocks, and the place in the schedule.

    Args:
        schedule: The scales that will be generated, in order.
        layers: One cache per block, in order.
    """

    def __init__(self, schedule: ScaleSchedule, layers: list[object]) -> None:
        self.schedule = schedule
        self.layers = layers
        self.next_scale = 0
