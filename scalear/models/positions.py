"""Absolute positions: what the transformer adds to a token so that it knows its place.

Legend: L tokens of all scales, l of the scales asked for, D width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from scalear.scales import ScaleSchedule


class Positions(nn.Module, ABC):
    """Vectors for the tokens of a schedule; in YAML built without their first two arguments, width and schedule."""

    @abstractmethod
    def forward(self, schedule: ScaleSchedule, first: int, last: int) -> Tensor:
        """(l, D) for the tokens of scales `first` up to and without `last`.

        Raises:
            ValueError: These positions do not serve the schedule.
        """


class TokenPositions(Positions):
    """One learned vector per token of the whole schedule (FlowAR).

    Args:
        dim: D.
        schedule: The only schedule that these positions serve.
    """

    def __init__(self, dim: int, schedule: ScaleSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.table_LD = nn.Parameter(torch.empty(schedule.num_tokens, dim))
        self.table_LD.no_weight_decay = True
        nn.init.normal_(self.table_LD, std=0.02)

    def forward(self, schedule: ScaleSchedule, first: int, last: int) -> Tensor:
        require_same(schedule, self.schedule)
        return self.table_LD[schedule.offsets[first] : schedule.offsets[last]]


def require_same(schedule: ScaleSchedule, trained: ScaleSchedule) -> None:
    """Refuse a schedule that learned tables have no vectors for.

    Raises:
        ValueError: Names both schedules.
    """
    if schedule != trained:
        raise ValueError(
            f"this model has learned positions for scales {trained} and cannot do {schedule}: leave the scales as "
            "they are, or use a model with scalable positions (FlexVAR)"
        )
