"""Random numbers that are known: recorded, or chosen for a test."""

from collections.abc import Mapping

from torch import Tensor


class RecordedDraws:
    """Gives recorded numbers by name, as often as asked.

    Args:
        record: Name to tensor of shape (B, ...).
    """

    def __init__(self, record: Mapping[str, Tensor]) -> None:
        self._record = record

    def uniform(self, name: str, *shape: int) -> Tensor:
        assert self._record[name].shape[1:] == shape
        return self._record[name]

    normal = uniform
