"""Mamba in place of attention (FlexVAR table 5 and appendix 7).

A block walks over the tokens of every scale along a zigzag path and takes what it knows from one scale to the next. Its
state is causal along the path, even inside a scale; blocks take different paths, so that together they see all of it.
Contexts are known before a scale is predicted, in training as in sampling, so a scale is one call either way, and the
state at its end is all that the next scale needs: the cache does not grow.

Legend: B batch, L tokens, D width, E = expand D channels inside, N numbers of state per channel, R rank of steps,
W width of the convolution, w = W - 1.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalear.models.blocks import Place
from scalear.models.layers import normal_linear, var_std
from scalear.models.var_block import CodeBlock, residual_std
from scalear.models.zigzag import NUM_PATHS, zigzag
from scalear.scales import ScaleSchedule

_CONV_WIDTH = 4
_STEPS = 1e-3, 1e-1  # between which the steps of time start


class MambaBlock(CodeBlock):
    """FlexVAR's block with a Mamba layer instead of attention, along one of eight paths in turn.

    Args:
        dim: D, also of the condition.
        place: How deep the block sits, which decides the path.
        d_state: N.
        expand: E / D.
        mlp_ratio: Hidden units of the MLP over D.
        drop_path: Probability that the last block is skipped by a sample; it rises linearly from none at the first.
        gate_init: Factor on the gates' initial weights.
        exact_gelu: GELU itself instead of its approximation by tanh.
    """

    def __init__(
        self,
        dim: int,
        place: Place,
        d_state: int = 16,
        expand: int = 2,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        gate_init: float = 1e-5,
        exact_gelu: bool = False,
    ) -> None:
        if min(d_state, expand) < 1:
            raise ValueError(f"d_state and expand must be at least 1, got {d_state} and {expand}")
        mixer = Mamba(dim, place.layer % NUM_PATHS, d_state, expand, residual_std(dim, place))
        super().__init__(dim, place, mixer, mlp_ratio, drop_path, gate_init, exact_gelu)


@dataclass
class MambaState:
    """What a Mamba layer knows of the tokens so far.

    Attributes:
        tail_BwE: Input of the convolution at the last tokens; None before the first.
        state_BNE: Of the scan, at least float32; None before the first token.
    """

    tail_BwE: Tensor | None = None
    state_BNE: Tensor | None = None


class Mamba(nn.Module):
    """A selective state space layer (Gu and Dao, 2023, section 3.4) over the tokens of scales, along one zigzag path.

    Args:
        dim: D.
        path: As in `zigzag`.
        d_state: N.
        expand: E / D.
        proj_std: Standard deviation of the output projection's initial weights.
    """

    def __init__(self, dim: int, path: int, d_state: int, expand: int, proj_std: float) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.path = path
        self.splits = rank, d_state, d_state
        self.in_proj = normal_linear(dim, 2 * inner, var_std(dim), bias=False)
        self.conv_WE = nn.Parameter(torch.empty(_CONV_WIDTH, inner).uniform_(-0.5, 0.5))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.scan_proj = normal_linear(inner, sum(self.splits), var_std(inner), bias=False)
        self.step_proj = normal_linear(rank, inner, var_std(rank), bias=False)
        steps = torch.empty(inner).uniform_(*map(math.log, _STEPS)).exp()
        self.step_bias = nn.Parameter(steps.expm1().log())  # softplus gives the steps back
        self.log_rate_NE = nn.Parameter(torch.arange(1.0, d_state + 1).log()[:, None].repeat(1, inner))
        self.log_rate_NE.no_weight_decay = True
        self.skip = nn.Parameter(torch.ones(inner))
        self.proj = normal_linear(inner, dim, proj_std, bias=False)

    def forward(self, x_BLD: Tensor, schedule: ScaleSchedule, cache: MambaState | None = None) -> Tensor:
        """Mix the tokens of `schedule`, which follow those that the cache knows where one is given."""
        order_L, back_L = zigzag(schedule, self.path, x_BLD.device)
        x_BLE, gate_BLE = self.in_proj(x_BLD.index_select(1, order_L)).chunk(2, dim=-1)
        x_BLE = F.silu(self._convolve(x_BLE, cache))
        step_BLR, write_BLN, read_BLN = self.scan_proj(x_BLE).split(self.splits, dim=-1)
        step_BLE = F.softplus(self.step_proj(step_BLR) + self.step_bias)  # the bias in float32, also under autocast
        inputs = x_BLE, step_BLE, -self.log_rate_NE.exp(), write_BLN, read_BLN
        if cache is None:
            y_BLE, _ = self.scan(*inputs, None)
        else:
            if cache.state_BNE is None:
                dtype = torch.promote_types(x_BLE.dtype, torch.float32)
                cache.state_BNE = x_BLE.new_zeros(len(x_BLE), *self.log_rate_NE.shape, dtype=dtype)
            y_BLE, cache.state_BNE = self.scan(*inputs, cache.state_BNE)
        y_BLE = torch.addcmul(y_BLE, x_BLE, self.skip) * F.silu(gate_BLE)
        return self.proj(y_BLE.to(gate_BLE.dtype)).index_select(1, back_L)

    def make_cache(self, num_tokens: int) -> MambaState:
        """A place for what is known of the tokens so far, however many there will be."""
        return MambaState()

    @torch.compiler.disable  # it would unroll every token
    def scan(
        self,
        x_BLE: Tensor,
        step_BLE: Tensor,
        rate_NE: Tensor,
        write_BLN: Tensor,
        read_BLN: Tensor,
        state_BNE: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The recurrence of each channel's N numbers of state, at least in float32.

            state_t = exp(step_t rate) state_(t-1) + step_t x_t write_t,    y_t = read_t . state_t

        Args:
            x_BLE: Input.
            step_BLE: How far time goes on at each token, positive.
            rate_NE: Of decay, negative ("A" in the paper).
            write_BLN: How the input enters the state ("B").
            read_BLN: How the output is read from it ("C").
            state_BNE: What earlier tokens have left behind; None for zeros.

        Returns:
            y_BLE and the state after the last token.
        """
        dtype = torch.promote_types(x_BLE.dtype, torch.float32)
        x_BLE, step_BLE, write_BLN, read_BLN = (part.to(dtype) for part in (x_BLE, step_BLE, write_BLN, read_BLN))
        if state_BNE is None:
            state_BNE = x_BLE.new_zeros(len(x_BLE), *rate_NE.shape)
        outputs = []
        tokens = (part.unbind(1) for part in (x_BLE, step_BLE, write_BLN, read_BLN))
        for x_BE, step_BE, write_BN, read_BN in zip(*tokens, strict=True):
            decay_BNE = (step_BE[:, None] * rate_NE).exp()
            state_BNE = decay_BNE * state_BNE + (step_BE * x_BE)[:, None] * write_BN[..., None]
            outputs.append((read_BN[..., None] * state_BNE).sum(1))
        return torch.stack(outputs, dim=1), state_BNE

    def _convolve(self, x_BLE: Tensor, cache: MambaState | None) -> Tensor:
        """Mix each channel with itself at the tokens before."""
        length = x_BLE.shape[1]
        if cache is None or cache.tail_BwE is None:
            x_BLE = F.pad(x_BLE, (0, 0, _CONV_WIDTH - 1, 0))
        else:
            x_BLE = torch.cat([cache.tail_BwE, x_BLE], dim=1)
        if cache is not None:
            cache.tail_BwE = x_BLE[:, length:].clone()
        out_BLE = self.conv_bias
        for first, weight_E in enumerate(self.conv_WE):
            out_BLE = torch.addcmul(out_BLE, x_BLE[:, first : first + length], weight_E)
        return out_BLE
