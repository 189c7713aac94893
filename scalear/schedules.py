"""Lists of scales: sensible ones for any size, and the random ones that a generator of any scale is trained on.

The paper's own lists have names, such as 256px-10: see `scalear.scales.STEP_TABLES`.
"""

import math
import random
from abc import ABC, abstractmethod
from itertools import pairwise

from scalear.draws import SCHEDULES, stream_seed
from scalear.idle_settings import refuse_idle
from scalear.scales import ScaleSchedule


def make_schedule(size: tuple[int, int], num_steps: int) -> ScaleSchedule:
    """A list of `num_steps` scales from 1x1 to `size`: every side at first, then growing by a constant factor.

    Each scale is followed by the one that would bring a constant factor to the end in the steps that remain, or by
    the next larger if that is no larger. For 16x16 and 10 to 13 steps these are the lists of VAR and FlexVAR
    (appendix, table 7). A size that is not square keeps its aspect ratio at every scale, rounded.

    Args:
        size: Tokens (h, w) of the finest scale.
        num_steps: Scales, from 2 to the longer side (1 if that is 1).

    Raises:
        ValueError: There are not that many scales.
    """
    longest, shortest = max(size), min(size)
    if shortest < 1 or not min(2, longest) <= num_steps <= longest:
        raise ValueError(
            f"there is no list of {num_steps} scales from 1x1 to {size[0]}x{size[1]} tokens: "
            f"take from {min(2, longest)} to {longest} steps"
        )
    sides = [1]
    for left in range(num_steps - 1, 0, -1):
        growing = round(sides[-1] * (longest / sides[-1]) ** (1 / left))
        sides.append(min(max(growing, sides[-1] + 1), longest - left + 1))
    return ScaleSchedule(
        tuple(tuple(max(1, (2 * side * part + longest) // (2 * longest)) for part in size) for side in sides)
    )


def doubling_schedule(side: int) -> ScaleSchedule:
    """Square scales from 1 to `side`, each the half of the next, rounded up: 1,2,4,8 or 1,2,3,6,12.

    The lists of FlowAR (paper, section 4.1), continued to any side.
    """
    sides = [side]
    while sides[0] > 1:
        sides.insert(0, (sides[0] + 1) // 2)
    return ScaleSchedule.parse(sides)


def with_scales_between(schedule: ScaleSchedule) -> ScaleSchedule:
    """The same square scales and those halfway between, rounded down: 1,2,4,8 becomes 1,2,3,4,6,8."""
    sides = [height for height, _ in schedule.sizes]
    between = [(coarse + fine) // 2 for coarse, fine in pairwise(sides)]
    return ScaleSchedule.parse(sorted({*sides, *between}))


def continue_schedule(schedule: ScaleSchedule, size: tuple[int, int]) -> ScaleSchedule:
    """A list that goes on to a finer `size` (h, w), by factors of at most 1.5, as FlexVAR's for 384 and 512 px do.

    Raises:
        ValueError: `size` is smaller than the last scale in a side.
    """
    coarse = schedule.sizes[-1]
    steps = math.ceil(math.log(max(size[0] / coarse[0], size[1] / coarse[1]), 1.5) - 1e-9)
    between = [
        tuple(round(start * (end / start) ** (step / steps)) for start, end in zip(coarse, size, strict=True))
        for step in range(1, steps)
    ]
    finer = [scale for scale in [*between, size] if scale != coarse]
    return ScaleSchedule((*schedule.sizes, *dict.fromkeys(finer)))


class ScheduleSampler(ABC):
    """The scales of training, a function of (seed, number).

    Attributes:
        per_batch: Every batch of every rank has scales of its own, and its place in the stream is their number. False:
            all batches of an optimizer step share their scales, whose number is the step.
    """

    per_batch = False

    @property
    @abstractmethod
    def final(self) -> tuple[int, int]:
        """The largest token map (h, w) that is drawn: what the latents of training must be."""

    @abstractmethod
    def draw(self, seed: int, number: int) -> ScaleSchedule:
        """The scales of one optimizer step, or batch."""


class PaperSchedules(ScheduleSampler):
    """FlexVAR's step sampling as its paper has it (section 3.4): 6 to 10 scales at side 16.

    The first scale is 1x1 and the last the full side n. Between them stand min(max_between, n - 2) distinct sides,
    uniform from 2 to n - 1, of which each is dropped with `drop_prob`, but never more than `max_drops`.

    Args:
        side: n, tokens per side of the finest scale.
        max_between: Most scales between the first and the last; the paper has 8, 10 in all.
        drop_prob: Probability that a scale between is dropped.
        max_drops: Most scales dropped from one list.
        token_budget: Most tokens of all scales together: from longer lists, random scales between are removed until
            they fit. None for any number.
        per_batch: Draw for every batch of every rank. By default once a step, so that no rank waits for one with more
            tokens; the paper says nothing of it.
    """

    def __init__(
        self,
        side: int,
        max_between: int,
        drop_prob: float = 0.05,
        max_drops: int = 4,
        token_budget: int | None = None,
        per_batch: bool = False,
    ) -> None:
        if side < 2:
            raise ValueError(f"side must be at least 2, got {side}: the first scale is 1 and the last is the side")
        if max_between < 0 or max_drops < 0 or not 0 <= drop_prob <= 1:
            raise ValueError(
                f"need max_between >= 0, max_drops >= 0 and drop_prob in [0, 1], got {max_between}, {max_drops}, "
                f"{drop_prob}"
            )
        if not drop_prob:
            refuse_idle(PaperSchedules, "schedules.drop_prob is 0", max_drops=max_drops)
        if token_budget is not None and token_budget < 1 + side * side:
            raise ValueError(
                f"token_budget is {token_budget}, but the first and the last scale alone have {1 + side * side} tokens"
            )
        self.side = side
        self.max_between = max_between
        self.drop_prob = drop_prob
        self.max_drops = max_drops
        self.token_budget = token_budget
        self.per_batch = per_batch

    @property
    def final(self) -> tuple[int, int]:
        return self.side, self.side

    def draw(self, seed: int, number: int) -> ScaleSchedule:
        rng = _generator(seed, number)
        between = rng.sample(range(2, self.side), min(self.max_between, self.side - 2))
        chances = sorted((rng.random(), side) for side in between)
        dropped = {side for chance, side in chances[: self.max_drops] if chance < self.drop_prob}
        between = [side for side in between if side not in dropped]
        while self.token_budget is not None and _tokens([1, *between, self.side]) > self.token_budget:
            between.remove(rng.choice(between))
        return ScaleSchedule.parse([1, *sorted(between), self.side])


class OfficialSchedules(ScheduleSampler):
    """FlexVAR's step sampling as its released code has it (`gen_curr_patch_nums`), which is not what the paper says.

    Only at side 16. One list in twenty is the default one; scale 2 is there as good as always; drops are nested; and
    the token budget also removes the last scale, so that a third of the lists end below 16.

    Args:
        per_batch: Draw for every batch of every rank, as the code does. By default once a step, so that no rank waits
            for one with more tokens.
    """

    DEFAULT = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    TOKEN_BUDGET = 680  # tokens of the default list

    def __init__(self, per_batch: bool = False) -> None:
        self.per_batch = per_batch

    @property
    def final(self) -> tuple[int, int]:
        return 16, 16

    def draw(self, seed: int, number: int) -> ScaleSchedule:
        rng = _generator(seed, number)
        if rng.random() < 0.05:
            sides = list(self.DEFAULT)
        else:
            sides = [1, 2, *sorted(rng.sample(range(3, 11), 5)), *sorted(rng.sample(range(11, 16), 2)), 16]
        chance = rng.random()
        for least in (0.9, 0.95, 0.98, 0.99):
            if chance > least:
                sides.pop(rng.randrange(2, len(sides) - 1))
        while _tokens(sides) > self.TOKEN_BUDGET:
            sides.pop(rng.randrange(len(sides) - 4, len(sides)))
        return ScaleSchedule.parse(sides)


def _generator(seed: int, number: int) -> random.Random:
    return random.Random(stream_seed((seed, SCHEDULES, number)))


def _tokens(sides: list[int]) -> int:
    return sum(side * side for side in sides)
