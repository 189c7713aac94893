"""Transformer blocks.

Legend: B batch, L tokens of the scales at hand, D width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from scalear.models.attention import Rotary, RotaryAttention
from scalear.models.layers import DropPath, GatedMlp, require_heads, zero_linear
from scalear.models.norms import AdaLN, rms_norm
from scalear.scales import ScaleSchedule


@dataclass(frozen=True)
class Place:
    """Where in a transformer a block stands.

    Attributes:
        layer: Index of the block, counted through all stacks.
        num_layers: Blocks in all stacks.
        schedule: The schedule that the transformer is built for.
    """

    layer: int
    num_layers: int
    schedule: ScaleSchedule


class AdaLNBlock(nn.Module):
    """Pre-norm transformer block whose norms are shifted, scaled and gated by a condition (adaLN-zero).

    With one condition vector per sample this is DiT's adaLN; with one per token it is FlowAR's spatial-adaLN (paper
    eq. 10, which leaves out residual sums, and the 1 that the scale is added to).

    Args:
        norm: Without a weight.
        mixer: Mixes the D channels of tokens of several scales, by attention or otherwise; also makes its cache.
        mlp: Position-wise network.
        modulation: The condition to 6 D numbers: both gates, both scales, both shifts (official code).
        drop_path: Probability that a sample skips the mixer, and that it skips the MLP, in training.

    Attributes:
        shares_modulation: The transformer must turn the condition into 6 D numbers for all blocks at once.
    """

    shares_modulation = False

    def __init__(
        self, norm: nn.Module, mixer: nn.Module, mlp: nn.Module, modulation: nn.Module, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.adaln = AdaLN(norm)
        self.mixer = mixer
        self.mlp = mlp
        self.modulation = modulation
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x_BLD: Tensor, cond: Tensor, schedule: ScaleSchedule, cache: object | None = None) -> Tensor:
        """`cond` is the activated condition, (B, 1, cond_dim) or (B, L, cond_dim)."""
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = self.modulation(cond).chunk(6, dim=-1)
        x_BLD = x_BLD + gate_1 * self.drop_path(self.mixer(self.adaln(x_BLD, shift_1, scale_1), schedule, cache))
        return x_BLD + gate_2 * self.drop_path(self.mlp(self.adaln(x_BLD, shift_2, scale_2)))

    def make_cache(self, num_tokens: int) -> object:
        """A place for what the mixer must know of `num_tokens` tokens."""
        return self.mixer.make_cache(num_tokens)


class FlowARBlock(AdaLNBlock):
    """Block of FlowAR's transformer: rotary attention, gated MLP, RMS norm. A fresh block is the identity.

    Args:
        dim: D, also of the condition.
        place: The finest scale is the extent of the rotary positions.
        num_heads: Heads.
        dropout: In attention weights, attention output and MLP, in training.
    """

    def __init__(self, dim: int, place: Place, num_heads: int, dropout: float = 0.0) -> None:
        require_heads(dim, num_heads)
        rotary = Rotary(dim // num_heads, side=max(place.schedule.sizes[-1]))
        attention = RotaryAttention(dim, num_heads, rotary, causal=True, dropout=dropout)
        super().__init__(rms_norm(dim, affine=False), attention, GatedMlp(dim, dropout), zero_linear(dim, 6 * dim))
