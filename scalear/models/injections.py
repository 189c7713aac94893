"""Transformers that predict velocities, by how the semantics are injected (FlowAR, section 3.2 and table 6).

Table 6 compares six ways, from the worst: `AveragedAdaLN`, `SequenceConcatenation`, `Addition`,
`CrossAttentionInjection`, `ChannelConcatenation`, `SpatialAdaLN`. The paper has a line for each; what it leaves open is
ours. Where adaLN does not know the semantics, it is of time alone.

Legend: B batch, K scales, L tokens of all scales given, C channels of a token, D semantics, E width of the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalear.models.attention import CrossAttention, Rotary, RotaryAttention
from scalear.models.blocks import AdaLNBlock
from scalear.models.layers import GatedMlp, linear, require_heads, zero_linear
from scalear.models.norms import AdaLN, modulate, rms_norm
from scalear.models.velocity import TimeEmbedding, VelocityNetwork, spread
from scalear.scales import ScaleSchedule


class FlowTransformer(VelocityNetwork):
    """A transformer over the tokens of each scale. How it hears of time and semantics is the subclass's affair.

    Scales do not see each other here: what a scale knows of the coarser ones reaches it through the semantics. A fresh
    one returns exactly zero.

    Args:
        token_dim: C.
        cond_dim: D.
        schedule: The scales of the model; the finest is the extent of rotary positions.
        dim: E.
        depth: Blocks.
        num_heads: Heads; the official code uses E // 64.
        quantise_time: As in `TimeEmbedding`.
    """

    def __init__(
        self,
        token_dim: int,
        cond_dim: int,
        schedule: ScaleSchedule,
        dim: int,
        depth: int,
        num_heads: int,
        quantise_time: bool = False,
    ) -> None:
        super().__init__()
        require_heads(dim, num_heads)
        self.time_embedding = TimeEmbedding(dim, quantise_time)
        self.cond_proj = linear(cond_dim, dim)
        self.input_proj = linear(token_dim, dim)
        rotary = Rotary(dim // num_heads, side=max(schedule.sizes[-1]))
        self.blocks = nn.ModuleList([self.make_block(dim, cond_dim, num_heads, rotary) for _ in range(depth)])
        self.final_norm = rms_norm(dim, affine=False)
        self.final_modulation = zero_linear(dim, 2 * dim)
        self.output_proj = zero_linear(dim, token_dim)

    def make_block(self, dim: int, cond_dim: int, num_heads: int, rotary: Rotary) -> nn.Module:
        """A block whose attention stays inside each scale."""
        attention = RotaryAttention(dim, num_heads, rotary, causal=False, qkv_bias=False)
        return AdaLNBlock(rms_norm(dim, affine=False), attention, GatedMlp(dim), zero_linear(dim, 6 * dim))

    def prepare(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> Tensor:
        """The semantics in the width of the network."""
        return self.cond_proj(hidden_BLD)

    def time(self, noise_level_BK: Tensor, schedule: ScaleSchedule) -> Tensor:
        """The activated time of each token, where adaLN is of time alone."""
        return F.silu(spread(self.time_embedding(noise_level_BK), schedule))

    def run(self, x_BLE: Tensor, cond: Tensor, schedule: ScaleSchedule) -> Tensor:
        """velocity_BLC of embedded tokens: blocks and output, all modulated by the same activated condition."""
        for block in self.blocks:
            x_BLE = block(x_BLE, cond, schedule)
        return self.output(x_BLE, cond)

    def output(self, x_BLE: Tensor, cond: Tensor) -> Tensor:
        """velocity_BLC of what the blocks give; `cond` is the activated condition, (B, 1, E) or (B, L, E)."""
        shift, scale = self.final_modulation(cond).chunk(2, dim=-1)
        return self.output_proj(modulate(self.final_norm(x_BLE), shift, scale))


class SpatialAdaLN(FlowTransformer):
    """FlowAR's: every token is shifted, scaled and gated by time and its own semantics (paper eq. 10)."""

    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, cond_BLE: Tensor, schedule: ScaleSchedule) -> Tensor:
        cond_BLE = F.silu(spread(self.time_embedding(noise_level_BK), schedule) + cond_BLE)
        return self.run(self.input_proj(x_BLC), cond_BLE, schedule)


class AveragedAdaLN(FlowTransformer):
    """All tokens of a scale are modulated alike, by time and the mean of the scale's semantics (DiT's adaLN)."""

    def prepare(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> Tensor:
        """The mean of each scale, cond_BKE."""
        return self.cond_proj(torch.stack([hidden_BlD.mean(1) for hidden_BlD in schedule.split(hidden_BLD)], dim=1))

    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, cond_BKE: Tensor, schedule: ScaleSchedule) -> Tensor:
        cond = F.silu(spread(self.time_embedding(noise_level_BK) + cond_BKE, schedule))
        return self.run(self.input_proj(x_BLC), cond, schedule)


class SequenceConcatenation(FlowTransformer):
    """Semantics are tokens of their own, before those of their scale; in the end they are cut off.

    The two maps of a scale make one of twice the height, the semantics above. Rotary positions so tell them apart, and
    every token is as far from its own semantics as any other.
    """

    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, cond_BLE: Tensor, schedule: ScaleSchedule) -> Tensor:
        stacked = ScaleSchedule(tuple((2 * height, width) for height, width in schedule.sizes))
        pairs = zip(schedule.split(cond_BLE), schedule.split(self.input_proj(x_BLC)), strict=True)
        x_BLE = torch.cat([part_BlE for pair in pairs for part_BlE in pair], dim=1)
        time = self.time(noise_level_BK, stacked)
        for block in self.blocks:
            x_BLE = block(x_BLE, time, stacked)
        x_BLE = torch.cat([both_BlE.chunk(2, dim=1)[1] for both_BlE in stacked.split(x_BLE)], dim=1)
        return self.output(x_BLE, self.time(noise_level_BK, schedule))


class Addition(FlowTransformer):
    """Semantics are added to the noisy tokens, in their C channels.

    Added to the embedded tokens they would be `ChannelConcatenation`, whose linear map is such a sum.
    """

    def __init__(self, token_dim: int, cond_dim: int, schedule: ScaleSchedule, **settings: int | bool) -> None:
        super().__init__(token_dim, cond_dim, schedule, **settings)
        self.cond_proj = linear(cond_dim, token_dim)

    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, cond_BLC: Tensor, schedule: ScaleSchedule) -> Tensor:
        return self.run(self.input_proj(x_BLC + cond_BLC), self.time(noise_level_BK, schedule), schedule)


class ChannelConcatenation(FlowTransformer):
    """Noisy tokens and semantics are joined channel by channel, and embedded together."""

    def __init__(self, token_dim: int, cond_dim: int, schedule: ScaleSchedule, **settings: int | bool) -> None:
        super().__init__(token_dim, cond_dim, schedule, **settings)
        dim = self.input_proj.out_features
        self.input_proj = linear(token_dim + dim, dim)

    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, cond_BLE: Tensor, schedule: ScaleSchedule) -> Tensor:
        x_BLE = self.input_proj(torch.cat([x_BLC, cond_BLE], dim=-1))
        return self.run(x_BLE, self.time(noise_level_BK, schedule), schedule)


class CrossAttentionInjection(FlowTransformer):
    """Between attention and MLP, every block attends to the semantics of the scale."""

    def make_block(self, dim: int, cond_dim: int, num_heads: int, rotary: Rotary) -> nn.Module:
        return CrossAttentionBlock(dim, dim, num_heads, rotary)

    def prepare(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> list[tuple[Tensor, Tensor]]:
        """What each block attends to."""
        cond_BLE = self.cond_proj(hidden_BLD)
        return [block.keys(cond_BLE, schedule) for block in self.blocks]

    def forward(
        self,
        x_BLC: Tensor,
        noise_level_BK: Tensor,
        keys_of_blocks: list[tuple[Tensor, Tensor]],
        schedule: ScaleSchedule,
    ) -> Tensor:
        time_BKE = F.silu(self.time_embedding(noise_level_BK))
        x_BLE, time_BLE = self.input_proj(x_BLC), spread(time_BKE, schedule)
        for block, keys in zip(self.blocks, keys_of_blocks, strict=True):
            x_BLE = block(x_BLE, time_BKE, time_BLE, keys, schedule)
        return self.output(x_BLE, time_BLE)


class CrossSpatialAdaLN(FlowTransformer):
    """That of FlowAR-L and -H: cross attention to the semantics, and spatial-adaLN for the MLP alone.

    Only this gives the paper's parameter counts for L and H (official code); the paper's text (eq. 10) describes
    `SpatialAdaLN` for all sizes.
    """

    def make_block(self, dim: int, cond_dim: int, num_heads: int, rotary: Rotary) -> nn.Module:
        return CrossAttentionBlock(dim, cond_dim, num_heads, rotary)

    def prepare(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The semantics in the width of the network, and what each block attends to."""
        return self.cond_proj(hidden_BLD), [block.keys(hidden_BLD, schedule) for block in self.blocks]

    def forward(
        self,
        x_BLC: Tensor,
        noise_level_BK: Tensor,
        condition: tuple[Tensor, list[tuple[Tensor, Tensor]]],
        schedule: ScaleSchedule,
    ) -> Tensor:
        cond_BLE, keys_of_blocks = condition
        time_BKE = self.time_embedding(noise_level_BK)
        cond_BLE, time_BKE = F.silu(spread(time_BKE, schedule) + cond_BLE), F.silu(time_BKE)
        x_BLE = self.input_proj(x_BLC)
        for block, keys in zip(self.blocks, keys_of_blocks, strict=True):
            x_BLE = block(x_BLE, time_BKE, cond_BLE, keys, schedule)
        return self.output(x_BLE, cond_BLE)


class CrossAttentionBlock(nn.Module):
    """Attention with adaLN of time alone, cross attention to the semantics, MLP with spatial-adaLN.

    Args:
        dim: E.
        cond_dim: D.
        num_heads: Heads of both attentions.
        rotary: Positions in both.
    """

    def __init__(self, dim: int, cond_dim: int, num_heads: int, rotary: Rotary) -> None:
        super().__init__()
        self.adaln = AdaLN(rms_norm(dim, affine=False))
        self.attention = RotaryAttention(dim, num_heads, rotary, causal=False, qkv_bias=False)
        self.attention_modulation = zero_linear(dim, 3 * dim)
        self.query_norm = rms_norm(dim, affine=True)
        self.key_norm = rms_norm(cond_dim, affine=True)
        self.cross_attention = CrossAttention(dim, cond_dim, num_heads, rotary)
        self.mlp = GatedMlp(dim)
        self.mlp_modulation = zero_linear(dim, 3 * dim)

    def keys(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
        """What cross attention attends to."""
        return self.cross_attention.keys(self.key_norm(hidden_BLD), schedule)

    def forward(
        self, x_BLE: Tensor, time_BKE: Tensor, cond_BLE: Tensor, keys: tuple[Tensor, Tensor], schedule: ScaleSchedule
    ) -> Tensor:
        """`time_BKE` is the activated time, `cond_BLE` the activated sum of time and semantics."""
        # Time is the same for all tokens of a scale: the linear map is applied before it is spread over them.
        gate, scale, shift = spread(self.attention_modulation(time_BKE), schedule).chunk(3, dim=-1)
        x_BLE = x_BLE + gate * self.attention(self.adaln(x_BLE, shift, scale), schedule)
        x_BLE = x_BLE + self.cross_attention(self.query_norm(x_BLE), keys, schedule)
        gate, scale, shift = self.mlp_modulation(cond_BLE).chunk(3, dim=-1)
        return x_BLE + gate * self.mlp(self.adaln(x_BLE, shift, scale))
