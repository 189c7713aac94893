"""At which sizes a scalable tokenizer is trained."""

import random

from scalear.draws import SCHEDULES, stream_seed


class RandomSizes:
    """`count` distinct squares below the full size at every step (FlexVAR section 3.3), equal on all ranks.

    Args:
        count: K; where there are fewer sizes below the full one, all of them.
    """

    def __init__(self, count: int = 5) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}; without random sizes leave out `sizes`")
        self.count = count

    def draw(self, seed: int, step: int, full: tuple[int, int]) -> list[tuple[int, int]]:
        """Latent sizes of one optimizer step, coarse to fine, besides the full size (h, w).

        An h x w latent is resized to h' x w' with h' / h as near to w' / w as whole numbers allow.
        """
        longest = max(full)
        sides = random.Random(stream_seed((seed, SCHEDULES, step))).sample(
            range(1, longest), min(self.count, longest - 1)
        )
        return [tuple(max(1, round(side * part / longest)) for part in full) for side in sorted(sides)]
