"""Ranks that wait for each other as long as it takes."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch

T = TypeVar("T")


class PatientRanks:
    """All ranks of a run, in collectives of their own that have no time limit and go through main memory (gloo).

    In those of a Trainer nobody may wait for long: NCCL ends the run after half an hour. Where a rank works for hours
    while others wait, they meet here. Made on all ranks at once, when the Trainer has connected them; without a
    connection it is one process that is asked for everything.
    """

    def __init__(self) -> None:
        connected = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._group = torch.distributed.new_group(timeout=timedelta(days=365), backend="gloo") if connected else None

    def gather(self, part: T) -> list[T] | None:
        """What all ranks give, in their order; on rank 0 alone, once all are here."""
        if self._group is None:
            return [part]
        parts = [None] * torch.distributed.get_world_size() if torch.distributed.get_rank() == 0 else None
        torch.distributed.gather_object(part, parts, dst=0, group=self._group)
        return parts

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on all ranks; it is called once all are here. What it raises, all raise."""
        if self._group is None:
            return make()
        torch.distributed.barrier(self._group)
        made: list[tuple[T | None, Exception | None]] = [(None, None)]
        if torch.distributed.get_rank() == 0:
            try:
                made = [(make(), None)]
            except Exception as error:
                made = [(None, error)]
        torch.distributed.broadcast_object_list(made, src=0, group=self._group)
        result, error = made[0]
        if error is not None:
            raise error
        return result
