"""FlowAR's head: a flow-matching network for one scale, conditioned on semantics by spatial-adaLN.

Legend: B batch, K scales, L tokens of all scales given, C channels of a token, D semantics, E flow width.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalear.draws import Draws
from scalear.flow import FlowSolver, interpolate, logit_normal
from scalear.guidance import Guidance
from scalear.models.blocks import AdaLNBlock, require_heads
from scalear.models.head import Head
from scalear.models.layers import CrossAttention, GatedMlp, Rotary, RotaryAttention, linear, zero_linear
from scalear.models.norms import modulate, rms_norm
from scalear.models.remade import remade
from scalear.models.step_graphs import StepGraphs
from scalear.scales import ScaleSchedule


class TimeEmbedding(nn.Module):
    """Flow time to a vector: 256 sinusoids of the noise level 1 - t in thousandths, then a two-layer MLP.

    Args:
        dim: Width of the result.
        quantise: Truncate the noise level to thousandths, as the official code does in training and sampling.
            Off by default: it only coarsens time.
    """

    def __init__(self, dim: int, quantise: bool = False) -> None:
        super().__init__()
        self.quantise = quantise
        self.mlp = nn.Sequential(linear(256, dim), nn.SiLU(), linear(dim, dim))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, noise_level: Tensor) -> Tensor:
        """Noise levels of any shape, float32 -> (..., dim)."""
        angles = self.thousandths(noise_level)[..., None] * _frequencies(noise_level.device)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def thousandths(self, noise_level: Tensor) -> Tensor:
        """What the sinusoids are of; whole numbers if quantised."""
        thousandths = 1000.0 * noise_level
        return thousandths.trunc() if self.quantise else thousandths


class CrossAttentionBlock(nn.Module):
    """The block of FlowAR-L and -H: time-only adaLN on attention, cross attention to the semantics, spatial MLP.

    Only this block gives the paper's parameter counts for L and H; the paper's text (eq. 10) describes
    `AdaLNBlock` for all sizes.

    Args:
        dim: E.
        hidden_dim: D, width of the semantics.
        num_heads: Heads of both attentions.
        rotary: Positions of both.
    """

    def __init__(self, dim: int, hidden_dim: int, num_heads: int, rotary: Rotary) -> None:
        super().__init__()
        self.norm = rms_norm(dim, affine=False)
        self.attention = RotaryAttention(dim, num_heads, rotary, causal=False, qkv_bias=False)
        self.attention_modulation = zero_linear(dim, 3 * dim)
        self.query_norm = rms_norm(dim, affine=True)
        self.key_norm = rms_norm(hidden_dim, affine=True)
        self.cross_attention = CrossAttention(dim, hidden_dim, num_heads, rotary)
        self.mlp = GatedMlp(dim)
        self.mlp_modulation = zero_linear(dim, 3 * dim)

    def forward(
        self,
        x_BLE: Tensor,
        cond_BLE: Tensor,
        time_BKE: Tensor,
        keys: tuple[Tensor, Tensor],
        schedule: ScaleSchedule,
    ) -> Tensor:
        """`keys` are those of `cross_attention` for the normalised semantics."""
        # Time is the same for all tokens of a scale: the linear map is applied before it is spread over them.
        gate, scale, shift = _spread(self.attention_modulation(F.silu(time_BKE)), schedule).chunk(3, dim=-1)
        with remade(modulate, self.norm, x_BLE, shift, scale) as y_BLE:
            x_BLE = x_BLE + gate * self.attention(y_BLE, schedule)
        x_BLE = x_BLE + self.cross_attention(self.query_norm(x_BLE), keys, schedule)
        both_BLE = F.silu(cond_BLE + _spread(time_BKE, schedule))
        gate, scale, shift = self.mlp_modulation(both_BLE).chunk(3, dim=-1)
        with remade(modulate, self.norm, x_BLE, shift, scale) as y_BLE:
            return x_BLE + gate * self.mlp(y_BLE)


@dataclass
class Condition:
    """What the head makes of semantics, whatever the time: it serves all steps of a solver.

    Attributes:
        cond_BLE: The semantics in the width of the head.
        keys: Keys and values (B, N, L, d) of each block with cross attention.
    """

    cond_BLE: Tensor
    keys: list[tuple[Tensor, Tensor]]

    def first(self, batch: int) -> "Condition":
        """The first rows."""
        return Condition(self.cond_BLE[:batch], [(k[:batch], v[:batch]) for k, v in self.keys])


class FlowHead(Head):
    """Velocity network over the tokens of each scale (paper section 3.2, eq. 7 to 10).

    Scales do not see each other here: what a scale knows of the coarser ones reaches it through the semantics.
    A fresh head returns exactly zero.

    Args:
        token_dim: C, channels of a token.
        cond_dim: D, width of the semantics.
        dim: E.
        depth: Blocks.
        num_heads: Heads; the official code uses E // 64.
        cross_attention: Use `CrossAttentionBlock` (FlowAR-L, -H) instead of spatial-adaLN throughout (-S, -B).
        rotary_side: Extent of rotary coordinates, the side of the finest scale in training.
        quantise_time: As in `TimeEmbedding`.
        time_sampling: Distribution of training times: `uniform` (paper), or `logit_normal` as in `scalear.flow`.

    Attributes:
        step_graphs: Where there are any, the steps of solvers on a GPU are CUDA graphs.
    """

    sampling_type = FlowSolver

    def __init__(
        self,
        token_dim: int,
        cond_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        cross_attention: bool = False,
        rotary_side: int = 16,
        quantise_time: bool = False,
        time_sampling: Literal["uniform", "logit_normal"] = "uniform",
    ) -> None:
        super().__init__()
        require_heads(dim, num_heads)
        self.token_dim = token_dim
        self.cond_dim = cond_dim
        self.cross_attention = cross_attention
        self.time_sampling = time_sampling
        self.step_graphs: StepGraphs | None = None
        self.time_embedding = TimeEmbedding(dim, quantise_time)
        self.cond_proj = linear(cond_dim, dim)
        self.input_proj = linear(token_dim, dim)
        rotary = Rotary(dim // num_heads, rotary_side)

        def block() -> nn.Module:
            if cross_attention:
                return CrossAttentionBlock(dim, cond_dim, num_heads, rotary)
            attention = RotaryAttention(dim, num_heads, rotary, causal=False, qkv_bias=False)
            return AdaLNBlock(rms_norm(dim, affine=False), attention, GatedMlp(dim), zero_linear(dim, 6 * dim))

        self.blocks = nn.ModuleList([block() for _ in range(depth)])
        self.final_norm = rms_norm(dim, affine=False)
        self.final_modulation = zero_linear(dim, 2 * dim)
        self.output_proj = zero_linear(dim, token_dim)

    def check_codes(self, num_codes: int | None) -> None:
        if num_codes is not None:
            raise ValueError("FlowHead predicts latents, not codes: take LatentPyramid")

    def condition(self, hidden_BLD: Tensor, schedule: ScaleSchedule) -> Condition:
        """All that depends on the semantics alone."""
        keys = []
        if self.cross_attention:
            keys = [block.cross_attention.keys(block.key_norm(hidden_BLD), schedule) for block in self.blocks]
        return Condition(self.cond_proj(hidden_BLD), keys)

    def forward(
        self,
        x_BLC: Tensor,
        noise_level_BK: Tensor,
        hidden_BLD: Tensor,
        schedule: ScaleSchedule,
        condition: Condition | None = None,
    ) -> Tensor:
        """Velocity of the tokens of one or more scales.

        Args:
            x_BLC: Points on the path.
            noise_level_BK: 1 - t of each scale, float32. Not t: near data, float32 has no room for its distance to 1.
            hidden_BLD: Semantics.
            schedule: The K scales given.
            condition: What `condition` made of these semantics before, if it did.

        Returns:
            velocity_BLC.
        """
        condition = self.condition(hidden_BLD, schedule) if condition is None else condition
        time_BKE = self.time_embedding(noise_level_BK)
        both_BLE = F.silu(_spread(time_BKE, schedule) + condition.cond_BLE)
        x_BLE = self.input_proj(x_BLC)
        for index, block in enumerate(self.blocks):
            if self.cross_attention:
                x_BLE = block(x_BLE, condition.cond_BLE, time_BKE, condition.keys[index], schedule)
            else:
                x_BLE = block(x_BLE, both_BLE, schedule)
        shift, scale = self.final_modulation(both_BLE).chunk(2, dim=-1)
        return self.output_proj(modulate(self.final_norm, x_BLE, shift, scale))

    def loss(
        self, hidden_BLD: Tensor, targets: list[Tensor], schedule: ScaleSchedule, draws: Draws
    ) -> dict[str, Tensor]:
        """Flow-matching loss of each scale (eq. 9, mean instead of sum over tokens and channels).

        One time per sample and scale; draws `t_k` (for a noise level, 1 - t) and `noise_k`.
        """
        samples, noise_levels = [], []
        for k, target_BlC in enumerate(targets):
            noise_level_B = draws.uniform(f"t_{k}")
            if self.time_sampling == "logit_normal":
                noise_level_B = logit_normal(noise_level_B)
            noise_BlC = draws.normal(f"noise_{k}", *target_BlC.shape[1:])
            samples.append(interpolate(noise_BlC, target_BlC, (1.0 - noise_level_B)[:, None, None]))
            noise_levels.append(noise_level_B.to(noise_BlC.device, torch.float32))
        x_BLC = torch.cat([sample.x_t for sample in samples], dim=1)
        velocity_BLC = self(x_BLC, torch.stack(noise_levels, dim=1), hidden_BLD, schedule).float()
        errors = schedule.split(velocity_BLC - torch.cat([sample.velocity for sample in samples], dim=1))
        return {"loss": torch.stack([error_BlC.square().mean() for error_BlC in errors])}

    def scale_weights(self, schedule: ScaleSchedule) -> list[float]:
        """Every token weighs the same, one of the last scale 1 / n_K^2 (official code)."""
        return [length / schedule.lengths[-1] for length in schedule.lengths]

    def sample(
        self,
        hidden_BlD: Tensor,
        hidden_uncond_BlD: Tensor | None,
        k: int,
        schedule: ScaleSchedule,
        draws: Draws,
        sampling: FlowSolver,
        guidance: Guidance,
    ) -> Tensor:
        """Carry noise to the tokens of scale k, (B, l, C) float32; draws `noise_k`.

        The unconditional branch is evaluated only in steps that are guided; where it is, both branches read
        the conditional sample (official code).
        """
        weight = guidance.at_scale(k, schedule)
        guided = hidden_uncond_BlD is not None and weight != 1.0
        hidden_both = torch.cat([hidden_BlD, hidden_uncond_BlD]) if guided else hidden_BlD
        scale = schedule.scale(k)
        both = self.condition(hidden_both, scale)
        evaluate = self._by_graph if self.step_graphs is not None and hidden_BlD.is_cuda else self
        alone = both.first(len(hidden_BlD))
        noise_BlC = draws.normal(f"noise_{k}", schedule.lengths[k], self.token_dim)

        def velocity(x_BlC: Tensor, t: float) -> Tensor:
            state_dtype, x_BlC = x_BlC.dtype, x_BlC.to(noise_BlC.dtype)
            if not (guided and guidance.at_time(t)):
                return evaluate(x_BlC, _noise_levels(t, x_BlC), hidden_BlD, scale, alone).to(state_dtype)
            x_both = torch.cat([x_BlC, x_BlC])
            velocity_both = evaluate(x_both, _noise_levels(t, x_both), hidden_both, scale, both)
            cond, uncond = velocity_both.to(state_dtype).chunk(2)
            return uncond + weight * (cond - uncond)

        jump = guidance.start_time if guided else 0.0
        return sampling.solve(velocity, noise_BlC, sampling.times(k, schedule.num_scales, jump), jump)

    def _by_graph(
        self, x_BlC: Tensor, noise_level_B1: Tensor, hidden_BlD: Tensor, schedule: ScaleSchedule, condition: Condition
    ) -> Tensor:
        """As `forward`, which does not read the semantics where it is given a condition."""

        def velocity(x_BlC: Tensor, noise_level_B1: Tensor, cond_BlE: Tensor, *keys: Tensor) -> Tensor:
            pairs = list(zip(keys[::2], keys[1::2], strict=True))
            return self(x_BlC, noise_level_B1, hidden_BlD, schedule, Condition(cond_BlE, pairs))

        key = schedule, self.output_proj.weight.data_ptr()  # another place after a move to another device and back
        return self.step_graphs(velocity, key, x_BlC, noise_level_B1, condition.cond_BLE, *chain(*condition.keys))


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _frequencies(device: torch.device) -> Tensor:
    # Powers in double precision, rounded once: float32 exp differs in the last bit between devices, which times 1000
    # would be seen.
    exponents = -math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128
    return torch.tensor([math.exp(exponent) for exponent in exponents.tolist()], dtype=torch.float32, device=device)


def _spread(x_BKE: Tensor, schedule: ScaleSchedule) -> Tensor:
    """One vector per scale to one per token, or to something that broadcasts like that."""
    return x_BKE if schedule.num_scales == 1 else x_BKE[:, schedule.level_ids(x_BKE.device)]


def _noise_levels(t: float, x: Tensor) -> Tensor:
    return torch.full((x.shape[0], 1), 1.0 - t, dtype=torch.float32, device=x.device)
