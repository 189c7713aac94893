"""Absolute positions: what the transformer adds to a token so that it knows its place.

Legend: L tokens of all scales, l of the scales asked for, D width, h w a grid.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalear.models.layers import cached_table, var_std
from scalear.scales import ScaleSchedule


class Positions(nn.Module, ABC):
    """Vectors for the tokens of a schedule; in YAML built without their first two arguments, width and schedule.

    Attributes:
        scalable: Whether they serve any schedule, not only the one that they were made for.
    """

    scalable = True

    def check(self, schedule: ScaleSchedule) -> None:
        """Refuse a schedule that these positions do not serve.

        Raises:
            ValueError: Names the schedule, and the one that they serve.
        """

    @abstractmethod
    def forward(self, schedule: ScaleSchedule, first: int, last: int) -> Tensor:
        """(l, D) for the tokens of scales `first` up to and without `last`.

        Raises:
            ValueError: These positions do not serve the schedule.
        """


class LearnedPositions(Positions):
    """Vectors that are learned for the tokens of one schedule.

    Args:
        schedule: The only schedule that these positions serve.
    """

    scalable = False

    def __init__(self, schedule: ScaleSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def check(self, schedule: ScaleSchedule) -> None:
        if schedule != self.schedule:
            raise ValueError(
                f"this model has learned positions for scales {self.schedule} and cannot do {schedule}: leave the "
                "scales as they are, or use a model with scalable positions (FlexVAR)"
            )


class TokenPositions(LearnedPositions):
    """One learned vector per token of the whole schedule (FlowAR).

    Args:
        dim: D.
        schedule: The only schedule that these positions serve.
    """

    def __init__(self, dim: int, schedule: ScaleSchedule) -> None:
        super().__init__(schedule)
        self.table_LD = nn.Parameter(torch.empty(schedule.num_tokens, dim))
        self.table_LD.no_weight_decay = True
        nn.init.normal_(self.table_LD, std=0.02)

    def forward(self, schedule: ScaleSchedule, first: int, last: int) -> Tensor:
        self.check(schedule)
        return self.table_LD[schedule.offsets[first] : schedule.offsets[last]]


class LevelPositions(LearnedPositions):
    """One learned vector per token of the whole schedule and one per scale (VAR).

    Args:
        dim: D.
        schedule: The only schedule that these positions serve.
    """

    def __init__(self, dim: int, schedule: ScaleSchedule) -> None:
        super().__init__(schedule)
        self.start = start_vector(dim)
        self.table_LD = nn.Parameter(torch.empty(schedule.num_tokens, dim))
        self.table_LD.no_weight_decay = True
        self.level_embedding = nn.Embedding(schedule.num_scales, dim)
        self.level_embedding.weight.no_weight_decay = True
        for table in (self.table_LD, self.level_embedding.weight):
            nn.init.trunc_normal_(table, std=var_std(dim))

    def forward(self, schedule: ScaleSchedule, first: int, last: int) -> Tensor:
        self.check(schedule)
        tokens = slice(schedule.offsets[first], schedule.offsets[last])
        level_l = schedule.level_ids(self.table_LD.device)[tokens]
        return with_start(self.table_LD[tokens] + self.level_embedding(level_l), self.start, schedule, first)


class GridPositions(Positions):
    """A learned grid of vectors, resized to every scale (FlexVAR). It serves scales of any size and number.

    Args:
        dim: D.
        schedule: Not used: any will do.
        side: Side of the grid. The paper says that of the finest map in training, 16; the official code has 32.
        resize: `area` averages (official code; beyond the grid it repeats vectors), `bilinear` is the paper's.
        init: `sine_row_cosine_column` as in the official code: even channels know only the row, by its sine, odd ones
            only the column, by its cosine. `sincos` is what the paper says, sines and cosines of both; its
            width is a multiple of 4.
    """

    def __init__(
        self,
        dim: int,
        schedule: ScaleSchedule,
        side: int,
        resize: Literal["area", "bilinear"] = "area",
        init: Literal["sine_row_cosine_column", "sincos"] = "sine_row_cosine_column",
    ) -> None:
        super().__init__()
        self.resize = resize
        self.start = start_vector(dim)
        if init == "sincos":
            _require_quarters(dim)
            grid_hwD = _sincos((side, side), side, dim)
        else:
            frequencies = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
            angles = torch.arange(side)[:, None] * frequencies
            rows = angles.sin()[:, None].expand(-1, side, -1)
            columns = angles.cos()[None].expand(side, -1, -1)
            grid_hwD = torch.stack([rows, columns], dim=-1).flatten(-2)
        self.grid_Dhw = nn.Parameter(grid_hwD.permute(2, 0, 1).contiguous())
        self.grid_Dhw.no_weight_decay = True

    def forward(self, schedule: ScaleSchedule, first: int, last: int) -> Tensor:
        grids = [F.interpolate(self.grid_Dhw[None], size, mode=self.resize) for size in schedule.sizes[first:last]]
        vectors_lD = torch.cat([grid_1Dhw.flatten(2)[0].T for grid_1Dhw in grids])
        return with_start(vectors_lD, self.start, schedule, first)


class SinCosPositions(Positions):
    """Fixed sines and cosines of row and column, for scales of any size and number (an option of FlexVAR).

    Every scale covers the same square, whose extent is the side of the finest scale in training.

    Args:
        dim: D, a multiple of 4: sines and cosines of rows, then of columns.
        schedule: Its finest scale is the extent.
    """

    def __init__(self, dim: int, schedule: ScaleSchedule) -> None:
        super().__init__()
        _require_quarters(dim)
        self.side = max(schedule.sizes[-1])
        self.start = start_vector(dim)

    def forward(self, schedule: ScaleSchedule, first: int, last: int) -> Tensor:
        dim, device = len(self.start), self.start.device
        tables = [_sincos_table(size, self.side, dim, device) for size in schedule.sizes[first:last]]
        return with_start(torch.cat(tables), self.start, schedule, first)


@cached_table
def _sincos_table(size: tuple[int, int], side: int, dim: int, device: torch.device) -> Tensor:
    return _sincos(size, side, dim).flatten(0, 1).to(device)


def _sincos(size: tuple[int, int], side: int, dim: int) -> Tensor:
    """(h, w, D): sines and cosines of rows, then of columns, of a map that covers a square of `side`."""
    frequencies = 10000.0 ** (-4.0 * torch.arange(dim // 4) / dim)
    parts = []
    for axis, cells in enumerate(size):
        angles = ((torch.arange(cells) + 0.5) * side / cells)[:, None] * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        parts.append((waves[:, None] if axis == 0 else waves[None]).expand(*size, -1))
    return torch.cat(parts, dim=-1)


def _require_quarters(dim: int) -> None:
    if dim % 4:
        raise ValueError(f"sine and cosine positions need a width divisible by 4, got {dim}")


def start_vector(dim: int) -> nn.Parameter:
    """What distinguishes the class token from all others, (D,)."""
    start_D = nn.Parameter(torch.empty(dim))  # not of what init returns: diffusers loads with init switched off
    nn.init.trunc_normal_(start_D, std=var_std(dim))
    return start_D


def with_start(vectors_lD: Tensor, start_D: Tensor, schedule: ScaleSchedule, first: int) -> Tensor:
    """Add the start vector to the tokens of scale 0, where they are among those asked for."""
    if first > 0:
        return vectors_lD
    length = schedule.lengths[0]
    return torch.cat([vectors_lD[:length] + start_D, vectors_lD[length:]])
