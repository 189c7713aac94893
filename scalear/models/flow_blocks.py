"""Blocks of the velocity network: the ways in which semantics and flow time reach the tokens of a scale.

A block makes of the semantics what does not depend on time, once for all steps of a solver (`prepare`); `forward` is
given that, the time, and the tokens.

Legend: B batch, K scales, L tokens of all scales given, D semantics, E flow width.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from scalear.models.attention import CrossAttention, Rotary, RotaryAttention
from scalear.models.blocks import AdaLNBlock
from scalear.models.layers import GatedMlp, require_heads, zero_linear
from scalear.models.norms import AdaLN, rms_norm
from scalear.scales import ScaleSchedule


class FlowBlock(nn.Module, ABC):
    """One block; in YAML built without its first three arguments, (E, D, schedule of the whole model)."""

    @abstractmethod
    def prepare(self, hidden_BLD: Tensor, cond_BLE: Tensor, schedule: ScaleSchedule) -> Any:
        """What `forward` needs of the semantics.

        Args:
            hidden_BLD: The semantics.
            cond_BLE: The same in the width of the network, by a linear map that all blocks share.
            schedule: The scales of the tokens.
        """

    @abstractmethod
    def forward(self, x_BLE: Tensor, time_BKE: Tensor, state: Any, schedule: ScaleSchedule) -> Tensor:
        """The tokens after this block.

        Args:
            x_BLE: The tokens.
            time_BKE: Embedded time of each scale.
            state: What `prepare` made.
            schedule: The scales of the tokens, which do not see each other.
        """


class SpatialAdaLN(FlowBlock):
    """FlowAR's block: every token is shifted, scaled and gated by time and its own semantics (paper eq. 10).

    Args:
        dim: E.
        hidden_dim: D, width of the semantics.
        schedule: Its finest scale is the extent of rotary positions.
        num_heads: Heads; the official code uses E // 64.
    """

    def __init__(self, dim: int, hidden_dim: int, schedule: ScaleSchedule, num_heads: int) -> None:
        super().__init__()
        attention = attention_in_scales(dim, num_heads, rotary_positions(dim, schedule, num_heads))
        self.block = AdaLNBlock(rms_norm(dim, affine=False), attention, GatedMlp(dim), zero_linear(dim, 6 * dim))

    def prepare(self, hidden_BLD: Tensor, cond_BLE: Tensor, schedule: ScaleSchedule) -> Tensor:
        return cond_BLE

    def forward(self, x_BLE: Tensor, time_BKE: Tensor, state: Tensor, schedule: ScaleSchedule) -> Tensor:
        return self.block(x_BLE, F.silu(spread(time_BKE, schedule) + state), schedule)


class CrossAttentionBlock(FlowBlock):
    """The block of FlowAR-L and -H: time-only adaLN on attention, cross attention to the semantics, spatial MLP.

    Only this block gives the paper's parameter counts for L and H (official code); the paper's text (eq. 10) describes
    `SpatialAdaLN` for all sizes.

    Args:
        dim: E.
        hidden_dim: D, width of the semantics.
        schedule: Its finest scale is the extent of rotary positions.
        num_heads: Heads of both attentions; the official code uses E // 64.
    """

    def __init__(self, dim: int, hidden_dim: int, schedule: ScaleSchedule, num_heads: int) -> None:
        super().__init__()
        rotary = rotary_positions(dim, schedule, num_heads)
        self.adaln = AdaLN(rms_norm(dim, affine=False))
        self.attention = attention_in_scales(dim, num_heads, rotary)
        self.attention_modulation = zero_linear(dim, 3 * dim)
        self.query_norm = rms_norm(dim, affine=True)
        self.key_norm = rms_norm(hidden_dim, affine=True)
        self.cross_attention = CrossAttention(dim, hidden_dim, num_heads, rotary)
        self.mlp = GatedMlp(dim)
        self.mlp_modulation = zero_linear(dim, 3 * dim)

    def prepare(
        self, hidden_BLD: Tensor, cond_BLE: Tensor, schedule: ScaleSchedule
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return cond_BLE, self.cross_attention.keys(self.key_norm(hidden_BLD), schedule)

    def forward(
        self,
        x_BLE: Tensor,
        time_BKE: Tensor,
        state: tuple[Tensor, tuple[Tensor, Tensor]],
        schedule: ScaleSchedule,
    ) -> Tensor:
        cond_BLE, keys = state
        # Time is the same for all tokens of a scale: the linear map is applied before it is spread over them.
        gate, scale, shift = spread(self.attention_modulation(F.silu(time_BKE)), schedule).chunk(3, dim=-1)
        x_BLE = x_BLE + gate * self.attention(self.adaln(x_BLE, shift, scale), schedule)
        x_BLE = x_BLE + self.cross_attention(self.query_norm(x_BLE), keys, schedule)
        both_BLE = F.silu(spread(time_BKE, schedule) + cond_BLE)
        gate, scale, shift = self.mlp_modulation(both_BLE).chunk(3, dim=-1)
        return x_BLE + gate * self.mlp(self.adaln(x_BLE, shift, scale))


def rotary_positions(dim: int, schedule: ScaleSchedule, num_heads: int) -> Rotary:
    """Rotary positions whose extent is the finest scale.

    Raises:
        ValueError: Heads do not share the width evenly.
    """
    require_heads(dim, num_heads)
    return Rotary(dim // num_heads, side=max(schedule.sizes[-1]))


def attention_in_scales(dim: int, num_heads: int, rotary: Rotary) -> RotaryAttention:
    """Attention of every scale to itself: what it knows of coarser ones comes with the semantics."""
    return RotaryAttention(dim, num_heads, rotary, causal=False, qkv_bias=False)


def spread(x_BKE: Tensor, schedule: ScaleSchedule) -> Tensor:
    """One vector per scale to one per token, or to something that broadcasts like that."""
    return x_BKE if schedule.num_scales == 1 else x_BKE[:, schedule.level_ids(x_BKE.device)]
