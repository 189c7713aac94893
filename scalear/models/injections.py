"""Transformers that predict velocities, by how the semantics are injected (FlowAR, section 3.2 and table 6).

Legend: B batch, K scales, L tokens of all scales given, C channels of a token, D semantics, E width of the network.
"""

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

    def output(self, x_BLE: Tensor, cond: Tensor) -> Tensor:
        """velocity_BLC of what the blocks give; `cond` is the activated condition, (B, 1, E) or (B, L, E)."""
        shift, scale = self.final_modulation(cond).chunk(2, dim=-1)
        return self.output_proj(modulate(self.final_norm(x_BLE), shift, scale))


class SpatialAdaLN(FlowTransformer):
    """FlowAR's: every token is shifted, scaled and gated by time and its own semantics (paper eq. 10)."""

    def forward(self, x_BLC: Tensor, noise_level_BK: Tensor, cond_BLE: Tensor, schedule: ScaleSchedule) -> Tensor:
        cond_BLE = F.silu(spread(self.time_embedding(noise_level_BK), schedule) + cond_BLE)
        x_BLE = self.input_proj(x_BLC)
        for block in self.blocks:
            x_BLE = block(x_BLE, cond_BLE, schedule)
        return self.output(x_BLE, cond_BLE)


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
