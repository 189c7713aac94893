"""Ranks that wait for each other as long as it takes."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from torch.distributed import ProcessGroup

T = TypeVar("T")


class PatientRanks:
    """All ranks of a run, in collectives of their own that have no time limit and go through main memory.

    In those of a Trainer nobody may wait for long: NCCL ends the run after half an hour. Ranks of which one works for
    longer while the others wait meet here.

    Args:
        group: Of gloo, as `connect` makes it. By default this process is the only one.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else torch.distributed.get_rank()
        self.count = 1 if group is None else torch.distributed.get_world_size()

    @classmethod
    def connect(cls) -> "PatientRanks":
        """Those that a Trainer has connected. Called by all of them at once."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365)))

    def gather(self, part: T) -> list[T] | None:
        """What all ranks give, in their order, on rank 0; None elsewhere."""
        if self._group is None:
            return [part]
        parts = [None] * self.count if self.rank == 0 else None
        torch.distributed.gather_object(part, parts, dst=0, group=self._group)
        return parts

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on all ranks; it is called once all are here. What it raises, all raise."""
        if self._group is None:
            return make()
        torch.distributed.barrier(self._group)
        made: list[T | Exception | None] = [None]
        if self.rank == 0:
            try:
                made = [make()]
            except Exception as error:
                made = [error]
        torch.distributed.broadcast_object_list(made, src=0, group=self._group)
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]


ALONE = PatientRanks()
"""This process, where it is the only one."""
