"""Key tables: which of our tensors is which official one, and how the two are laid out.

A table is a list of `Row`, made for one model, in which no key is a pattern: what is not in the table is not
converted, and what is left over on either side is an error. Every layout change has an exact inverse, so that
converting there and back gives the same bits.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How official tensors become one of ours, and back.

    Attributes:
        to_ours: Official tensors of a row to ours.
        to_official: Ours and their number, back to official tensors.
    """

    to_ours: Callable[[list[Tensor]], Tensor]
    to_official: Callable[[Tensor, int], list[Tensor]]


SAME = Layout(lambda parts: parts[0], lambda tensor, count: [tensor])
# (1, ...) in the official file: tables that are broadcast over the batch.
BATCHED = Layout(lambda parts: parts[0].squeeze(0), lambda tensor, count: [tensor.unsqueeze(0)])
# The same up to the sign: official FlowAR's velocity points from data to noise, ours from noise to data.
NEGATED = Layout(lambda parts: -parts[0], lambda tensor, count: [-tensor])
# Several official projections of one input, stacked into one: q, k, v; gate and value of a gated MLP.
STACKED = Layout(lambda parts: torch.cat(parts), lambda tensor, count: list(tensor.chunk(count)))


def viewed(*official_shape: int) -> Layout:
    """One of our vectors, which the official file holds in another shape."""
    return Layout(lambda parts: parts[0].flatten(), lambda tensor, count: [tensor.view(official_shape)])


@dataclass(frozen=True)
class Row:
    """One tensor of ours and the official ones that hold the same numbers."""

    ours: str
    official: tuple[str, ...]
    layout: Layout = SAME


@dataclass(frozen=True)
class Constant:
    """A buffer of official files that holds no weights, and that our model therefore does not store.

    Attributes:
        key: Official key; the file may lack it.
        value: What it must hold, or None where that cannot be derived (usage statistics).
        fixed: Whether anything else is an error.
    """

    key: str
    value: Tensor | None = None
    fixed: bool = True


@dataclass
class Translation:
    """Tensors in the other naming, and everything that found no place.

    Attributes:
        tensors: By their new keys.
        absent: Keys that the table wants from the source and that it does not have.
        unused: Keys of the source that no row reads.
        carried: Constants of the source that must be kept to give it back bit by bit.
        constants: Keys of the source that are constants, carried or not.
    """

    tensors: dict[str, Tensor]
    absent: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    carried: dict[str, Tensor] = field(default_factory=dict)
    constants: list[str] = field(default_factory=list)


def weight(ours: str, official: str, layout: Layout = SAME) -> list[Row]:
    """Row of a layer without bias."""
    return [Row(f"{ours}.weight", (f"{official}.weight",), layout)]


def affine(ours: str, official: str, layout: Layout = SAME) -> list[Row]:
    """Rows of a layer's weight and bias."""
    return [Row(f"{ours}.{name}", (f"{official}.{name}",), layout) for name in ("weight", "bias")]


def stacked(ours: str, official: Iterable[str]) -> list[Row]:
    """Rows of a layer that stands for several official ones side by side."""
    official = tuple(official)
    return [Row(f"{ours}.{name}", tuple(f"{part}.{name}" for part in official), STACKED) for name in ("weight", "bias")]


def prefixed(rows: Iterable[Row], ours: str = "", official: str = "") -> list[Row]:
    """The same rows for parts that are nested deeper."""
    return [Row(ours + row.ours, tuple(official + key for key in row.official), row.layout) for row in rows]


def to_ours(rows: Iterable[Row], constants: Iterable[Constant], state: Mapping[str, Tensor]) -> Translation:
    """Official tensors to ours.

    Raises:
        ValueError: A constant holds something else than it must.
    """
    result = Translation({})
    left = dict(state)
    for row in rows:
        missing = [key for key in row.official if key not in left]
        result.absent += missing
        if not missing:
            result.tensors[row.ours] = row.layout.to_ours([left[key] for key in row.official]).contiguous()
        for key in row.official:
            left.pop(key, None)
    for constant in constants:
        if constant.key in left:
            found = left.pop(constant.key)
            result.constants.append(constant.key)
            if not _agrees(constant, found):
                result.carried[constant.key] = found
    result.unused = list(left)
    return result


def to_official(rows: Iterable[Row], constants: Iterable[Constant], state: Mapping[str, Tensor]) -> Translation:
    """Our tensors to official ones, with every constant that can be derived."""
    result = Translation({})
    left = dict(state)
    for row in rows:
        if row.ours not in left:
            result.absent.append(row.ours)
            continue
        parts = row.layout.to_official(left.pop(row.ours), len(row.official))
        result.tensors.update(zip(row.official, (part.contiguous() for part in parts), strict=True))
    for constant in constants:
        if constant.value is not None:
            result.tensors[constant.key] = constant.value
            result.constants.append(constant.key)
    result.unused = list(left)
    return result


def _agrees(constant: Constant, found: Tensor) -> bool:
    """Whether a constant can be derived bit by bit; close is not enough for that, but far off is an error."""
    if constant.value is None:
        return False
    expected = constant.value
    if found.shape == expected.shape and found.dtype == expected.dtype and torch.equal(found, expected):
        return True
    if not constant.fixed:
        return False
    # Averaging weights (EMA) also averages constants, which then drift by rounding.
    if found.shape != expected.shape or not torch.allclose(found.double(), expected.double(), rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"{constant.key} in the file is not what the recognised model has (shape {tuple(found.shape)}, expected "
            f"{tuple(expected.shape)}): the scale list or the number of heads is another one; give them with --config"
        )
    return False
