"""From logits to codes without networks: temperature, top-k, top-p, inverse-CDF sampling, smoothed codes.

Legend: B batch, l tokens of a scale, V codes, n rows of any number.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scalear.draws import Draws
from scalear.guidance import Guidance
from scalear.hardware.float64 import in_float64
from scalear.idle_settings import idle_settings, refuse_idle
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule

# Sides that the official code does not decode greedily.
_FLEXVAR_SAMPLED = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32}
_CHUNK = 2**22  # logits that are sorted at a time


@dataclass(frozen=True)
class TokenSampling(Sampling):
    """How the codes of a scale are chosen. The defaults sample from the model as it is."""

    searched = {"temperature": [0.7, 1.3], "top_p": [0.7, 1.0]}

    temperature: float = 1.0
    """Divides the logits; below 1 favours likely codes."""
    top_k: int | None = None
    """Keep the k most likely codes (and what equals the last of them); None keeps all."""
    top_p: float = 1.0
    """Then keep the most likely codes that have this share of the probability; 1 keeps all."""
    greedy: int | Literal["flexvar"] | None = None
    """Take the most likely code at scales with a side above this number; `flexvar` does so where the official code
    does, above `flexvar_side` and at all sides but 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24 and 32; None nowhere."""
    flexvar_side: int = 16
    """Side above which `greedy: flexvar` is greedy, the code's `max_pn`."""
    more_smooth: bool = False
    """Feed on averages of code vectors instead of single ones, sharper at finer scales (VAR): for looks, not FID."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; greedy: 0 takes the best code")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; null keeps all codes")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}; 1 keeps all codes")

        if self.greedy != "flexvar":
            refuse_idle(TokenSampling, f"sampling.greedy is {self.greedy}, not flexvar", flexvar_side=self.flexvar_side)

    def check(self, schedule: ScaleSchedule, guidance: Guidance) -> None:
        for name in ("start_time", "end_time"):
            if (time := getattr(guidance, name)) is not None:
                raise ValueError(
                    f"guidance.{name} {time} is a time of the flow, and codes are sampled without one: leave it out, "
                    "or set it to null"
                )

    def idle(self, schedule: ScaleSchedule) -> list[str]:
        if not all(self.greedy_at(size) for size in schedule.sizes):
            return []
        drawn = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return idle_settings(TokenSampling, f"greedy {self.greedy} takes the best code at every scale", **drawn)

    def greedy_at(self, size: tuple[int, int]) -> bool:
        """Whether a scale is decoded greedily."""
        if self.greedy == "flexvar":
            return max(size) > self.flexvar_side or max(size) not in _FLEXVAR_SAMPLED
        return self.greedy is not None and max(size) > self.greedy

    def sample(self, logits_BlV: Tensor, k: int, schedule: ScaleSchedule, draws: Draws) -> Tensor:
        """Content of scale k.

        Args:
            logits_BlV: Guided logits, float32.
            k: The scale.
            schedule: All scales.
            draws: `token_k`, one uniform number per token; with `more_smooth` `gumbel_k`, one per token and code.

        Returns:
            Codes (B, l) int64, or with `more_smooth` weights of codes (B, l, V).

        Raises:
            ValueError: A logit is NaN or infinite, but for -inf, which excludes a code, and not all.
        """
        schedule.require_finite(k, logits_BlV.amax(-1), "logits")
        num_codes = logits_BlV.shape[-1]
        if self.greedy_at(schedule.sizes[k]):
            codes_Bl = logits_BlV.argmax(-1)
            return F.one_hot(codes_Bl, num_codes).to(logits_BlV.dtype) if self.more_smooth else codes_Bl
        logits_BlV = logits_BlV / self.temperature
        if self.more_smooth:
            uniform_BlV = draws.uniform(f"gumbel_{k}", *logits_BlV.shape[1:])
            return smooth_codes(self.filter(logits_BlV), uniform_BlV, k / max(1, schedule.num_scales - 1))
        uniform_Bl = draws.uniform(f"token_{k}", logits_BlV.shape[1])
        # In chunks: sorting and cumulative sums take many times the memory of the logits.
        rows = max(1, _CHUNK // num_codes)
        chunks = zip(logits_BlV.flatten(0, 1).split(rows), uniform_Bl.flatten().split(rows), strict=True)
        codes = [inverse_cdf(self.filter(logits_nV), uniform_n) for logits_nV, uniform_n in chunks]
        return torch.cat(codes).view_as(uniform_Bl)

    def filter(self, logits: Tensor) -> Tensor:
        """Logits (..., V) with -inf where top-k or top-p exclude a code, in this order as in the official code."""
        if self.top_k is not None:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < kth, float("-inf"))
        if self.top_p < 1:
            ascending, order = logits.sort(dim=-1)
            excluded = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            excluded[..., -1] = False
            logits = logits.masked_fill(excluded.scatter(-1, order, excluded), float("-inf"))
        return logits


def inverse_cdf(logits_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """Codes (n,) where the cumulative probability passes the uniform number; in float64, so that rounding is rare."""
    cumulative_nV = in_float64(logits_nV).softmax(-1).cumsum(-1)
    threshold_n = in_float64(uniform_n) * cumulative_nV[:, -1]
    return torch.searchsorted(cumulative_nV, threshold_n[:, None], right=True)[:, 0].to(logits_nV.device)


def smooth_codes(logits_BlV: Tensor, uniform_BlV: Tensor, place: float) -> Tensor:
    """VAR's `more_smooth`: Gumbel-softmax weights of codes, sharper from the first scale (place 0) to the last (1)."""
    temperature = max(0.27 * (1 - 0.95 * place), 0.005)
    gumbel_BlV = -torch.log(-torch.log(uniform_BlV.clamp(torch.finfo(torch.float32).tiny, 1 - 2**-24)))
    return ((logits_BlV * (1 + place) + gumbel_BlV) / temperature).softmax(-1)
