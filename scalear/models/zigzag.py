"""Zigzag paths: the orders in which Mamba blocks walk over the tokens of a scale (FlexVAR, figure 12; ZigMa).

Legend: h w token map, L tokens of all scales at hand.
"""

import torch
from torch import Tensor

from scalear.models.layers import cached_table
from scalear.scales import ScaleSchedule

# Where a pair of paths starts, rows first and columns first: (at the bottom, at the right), in the paper's order.
_CORNERS = ((False, False), (True, False), (True, True), (False, True))
NUM_PATHS = 2 * len(_CORNERS)


@cached_table
def zigzag(schedule: ScaleSchedule, path: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """One path through every scale; the scales stay in order.

    Args:
        schedule: The scales at hand, of any height and width.
        path: From 0 to 7: four corners to start from, each with rows first and with columns first.
        device: Of the result.

    Returns:
        order_L, the tokens in the order of the path, and back_L, which undoes it: x[order][back] is x.
    """
    walks = [offset + _walk(size, path) for offset, size in zip(schedule.offsets, schedule.sizes, strict=False)]
    order_L = torch.cat(walks)
    return order_L.to(device), order_L.argsort().to(device)


def _walk(size: tuple[int, int], path: int) -> Tensor:
    bottom, right = _CORNERS[path // 2]
    map_hw = torch.arange(size[0] * size[1]).view(size)
    map_hw = map_hw.flip([axis for axis, flipped in enumerate((bottom, right)) if flipped])
    lines = map_hw.T.clone() if path % 2 else map_hw
    lines[1::2] = lines[1::2].flip(1)  # every other line backwards: the next token is always a neighbour
    return lines.flatten()
