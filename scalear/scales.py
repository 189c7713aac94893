"""Scale schedules: which token maps are generated, coarse to fine, and what follows from the list.

Legend: K scales, scale k is h_k x w_k tokens; L tokens of all scales, in order, each row-major.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import index

import torch
from torch import Tensor

STEP_TABLES: dict[str, tuple[int, ...]] = {
    "256px-6": (1, 2, 4, 6, 10, 16),
    "256px-7": (1, 2, 3, 5, 8, 11, 16),
    "256px-8": (1, 2, 3, 4, 6, 10, 13, 16),
    "256px-9": (1, 2, 3, 4, 5, 7, 10, 13, 16),
    "256px-10": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "256px-11": (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 16),
    "256px-12": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16),
    "256px-13": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16),
    "384px-11": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24),
    "512px-12": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 32),
    "512px-15": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 23, 32),
}
"""FlexVAR's lists for inference by resolution and number of steps (appendix, table 7); pixels at stride 16."""


@dataclass(frozen=True)
class ScaleSchedule:
    """An immutable, hashable list of token-map sizes, coarse to fine.

    Attributes:
        sizes: (h, w) of each scale; each at least 1x1, none smaller in a side than the one before, no repeats.
    """

    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("a scale list must not be empty; write for example 1,2,4,8,16")
        for height, width in self.sizes:
            if height < 1 or width < 1:
                raise ValueError(f"scale {_size_text((height, width))} in {self} must be at least 1x1")
        for coarse, fine in zip(self.sizes, self.sizes[1:], strict=False):
            if fine[0] < coarse[0] or fine[1] < coarse[1] or fine == coarse:
                raise ValueError(
                    f"scale {_size_text(fine)} follows {_size_text(coarse)} in {self}: scales go from coarse to fine, "
                    "each larger than the one before; sort the list and remove repeats"
                )

    @classmethod
    def parse(cls, scales: "str | Sequence[int | Sequence[int]] | ScaleSchedule") -> "ScaleSchedule":
        """Read a schedule as users write it: `"1,2,4"`, `"1,2x4,4x8"`, `[1, 2, [4, 8]]`, `"256px-10"` (`STEP_TABLES`).

        Raises:
            ValueError: An entry is not a size or name; or the list is empty, shrinks or repeats itself.
        """
        if isinstance(scales, ScaleSchedule):
            return scales
        if isinstance(scales, str):
            scales = STEP_TABLES.get(scales.strip(), scales)
        entries = [part for part in scales.split(",") if part.strip()] if isinstance(scales, str) else scales
        return cls(tuple(_parse_size(entry) for entry in entries))

    @property
    def num_scales(self) -> int:
        return len(self.sizes)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(height * width for height, width in self.sizes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First token of each scale in the flat sequence, and L at the end: K + 1 numbers."""
        offsets = [0]
        for length in self.lengths:
            offsets.append(offsets[-1] + length)
        return tuple(offsets)

    @property
    def num_tokens(self) -> int:
        """L, the tokens of all scales."""
        return self.offsets[-1]

    def scale(self, k: int) -> "ScaleSchedule":
        """The schedule that holds scale k alone."""
        return ScaleSchedule((self.sizes[k],))

    @property
    def names(self) -> list[str]:
        """Each scale as users write it: "4" or "4x8"."""
        return [_size_text(size) for size in self.sizes]

    def split(self, x_BLC: Tensor) -> tuple[Tensor, ...]:
        """(B, L, C) to one (B, l_k, C) view per scale."""
        return x_BLC.split(self.lengths, dim=1)

    @torch.compiler.disable  # a graph would serve one schedule only
    def level_ids(self, device: torch.device | str = "cpu") -> Tensor:
        """Scale of each token, (L,) int64."""
        return _level_ids(self, torch.device(device))

    def block_causal_mask(self, device: torch.device | str = "cpu") -> Tensor:
        """(L, L) bool, True where the query (row) may see the key: the key's scale is not finer."""
        return _block_causal_mask(self, torch.device(device))

    def require_final(self, size: tuple[int, int]) -> None:
        """Check that the schedule ends at the token map that the latent has.

        Raises:
            ValueError: It does not; names both sizes.
        """
        if self.sizes[-1] != tuple(size):
            raise ValueError(
                f"scales {self} end at {_size_text(self.sizes[-1])} tokens, but the latent has {_size_text(size)}: "
                f"let the list end at {_size_text(size)}, or change the patch size, the image size or the tokenizer"
            )

    def require_finite(self, k: int, values: Tensor, what: str, where: str = "") -> None:
        """Refuse to go on from NaN or infinity: what is made of it would look like an image.

        Args:
            k: The scale.
            values: Of the scale, or a number for each of its tokens that is finite if they are.
            what: Names them.
            where: Added to the message.

        Raises:
            ValueError: Names them and the scale, and the remedy.
        """
        if not values.isfinite().all():
            raise ValueError(
                f"{what} of scale {self.names[k]} are not finite{where}: the weights are damaged, or half precision "
                "overflows; take an earlier checkpoint, or float32 (32-true)"
            )

    def __str__(self) -> str:
        return ",".join(self.names)


def _parse_size(entry: "str | int | Sequence[int]") -> tuple[int, int]:
    try:
        sides = [int(side) for side in entry.split("x")] if isinstance(entry, str) else entry
        sides = [index(side) for side in ([sides] if isinstance(sides, int) else sides)]
        height, width = sides if len(sides) > 1 else sides * 2
        return height, width
    except (TypeError, ValueError):
        names = f", or alone a list's name: {', '.join(STEP_TABLES)}" if "px" in str(entry) else ""
        raise ValueError(f"{entry!r} is not a scale: write a side such as 4, or a size such as 4x8{names}") from None


def _size_text(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


# Masks depend on the schedule alone; random schedules (FlexVAR) repeat, so a few hundred are kept. They are made
# outside inference mode, so that those made while sampling also serve a later backward pass.
@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _level_ids(schedule: ScaleSchedule, device: torch.device) -> Tensor:
    levels = torch.arange(schedule.num_scales)
    return levels.repeat_interleave(torch.tensor(schedule.lengths)).to(device)


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _block_causal_mask(schedule: ScaleSchedule, device: torch.device) -> Tensor:
    level = _level_ids(schedule, device)
    return level[:, None] >= level[None, :]
