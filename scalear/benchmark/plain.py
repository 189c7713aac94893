"""The models without any of their shortcuts: the baseline of benchmarks, and what fast paths are tested against.

Eager operations on whole tensors, scaled dot-product attention under a dense block-causal mask, rotary tables and
masks made on every call, every module cast by autocast on its own. The weights are those of the model at hand.
"""

import contextlib
import math
import types
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import GluMlp, Mlp
from torch import Tensor, nn

from scalear.models.blocks import AdaLNBlock
from scalear.models.cache import LayerCache
from scalear.models.fused import all_plain
from scalear.models.layers import Attention, CrossAttention, GatedMlp, Rotary, RotaryAttention
from scalear.models.lean import LeanLinear
from scalear.models.var_block import VARAttention, VARMlp
from scalear.scales import ScaleSchedule


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Lets the layers inside `model` take the plain way."""
    changed = [
        (module, name, method)
        for module in model.modules()
        for kind, name, method in _PLAIN
        if isinstance(module, kind)
    ]
    for module, name, method in changed:
        setattr(module, name, types.MethodType(method, module))
    try:
        with all_plain():
            yield
    finally:
        for module, name, _ in changed:
            delattr(module, name)


def _attention(self: Attention, x_BLD: Tensor, schedule: ScaleSchedule, cache: LayerCache | None = None) -> Tensor:
    q_BNLd, k_BNLd, v_BNLd = self.project(x_BLD, schedule)
    if cache is None:
        mask_LL = _mask(schedule, self.causal, x_BLD.device)
        dropout = self.dropout if self.training else 0.0
        out_BNLd = F.scaled_dot_product_attention(q_BNLd, k_BNLd, v_BNLd, mask_LL, dropout, scale=self.scale)
    else:
        out_BNLd = F.scaled_dot_product_attention(q_BNLd, *cache.append(k_BNLd, v_BNLd), scale=self.scale)
    out_BLD = self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)"))
    return F.dropout(out_BLD, self.dropout, self.training)


def _project(self: RotaryAttention, x_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor, Tensor]:
    q_BNLd, k_BNLd, v_BNLd = rearrange(self.qkv(x_BLD), "B L (c N d) -> c B N L d", c=3, N=self.num_heads)
    turn_Lp = _turn(self.rotary, schedule)
    return _rotate(q_BNLd, turn_Lp), _rotate(k_BNLd, turn_Lp), v_BNLd


def _project_directions(self: VARAttention, x_BLD: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor, Tensor]:
    bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
    qkv = F.linear(x_BLD, self.qkv.weight, bias)
    q_BNLd, k_BNLd, v_BNLd = rearrange(qkv, "B L (c N d) -> c B N L d", c=3, N=self.num_heads)
    if self.log_scale_N is None:
        return q_BNLd, k_BNLd, v_BNLd
    scale_N = self.log_scale_N.clamp(max=math.log(100.0)).exp()
    q_BNLd = F.normalize(q_BNLd, dim=-1) * scale_N[:, None, None]
    return q_BNLd.to(v_BNLd.dtype), F.normalize(k_BNLd, dim=-1).to(v_BNLd.dtype), v_BNLd


def _cross_attention(
    self: CrossAttention, x_BLD: Tensor, keys: tuple[Tensor, Tensor], schedule: ScaleSchedule
) -> Tensor:
    q_BNLd = _rotate(rearrange(self.q(x_BLD), "B L (N d) -> B N L d", N=self.num_heads), _turn(self.rotary, schedule))
    out_BNLd = F.scaled_dot_product_attention(q_BNLd, *keys, _mask(schedule, False, x_BLD.device))
    return self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)"))


def _ada_ln_block(
    self: AdaLNBlock, x_BLD: Tensor, cond: Tensor, schedule: ScaleSchedule, cache: LayerCache | None = None
) -> Tensor:
    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = self.modulation(cond).chunk(6, dim=-1)
    x_BLD = x_BLD + self.drop_path(gate_1 * self.attention(self.norm(x_BLD) * (1 + scale_1) + shift_1, schedule, cache))
    return x_BLD + self.drop_path(gate_2 * self.mlp(self.norm(x_BLD) * (1 + scale_2) + shift_2))


def _turn(rotary: Rotary, schedule: ScaleSchedule) -> Tensor:
    half = rotary.head_dim // 2
    frequencies = 10000.0 ** (-2.0 * torch.arange(half // 2) / half)
    angles = []
    for height, width in schedule.sizes:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([rows.flatten() * rotary.side / height, columns.flatten() * rotary.side / width], dim=-1)
        angles.append((places[:, :, None] * frequencies).flatten(1))
    return torch.polar(torch.ones(()), torch.cat(angles))


def _rotate(x_BNLd: Tensor, turn_Lp: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x_BNLd.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn_Lp.to(x_BNLd.device)).flatten(-2).to(x_BNLd.dtype)


def _mask(schedule: ScaleSchedule, causal: bool, device: torch.device) -> Tensor:
    lengths = torch.tensor(schedule.lengths, device=device)
    level_L = torch.arange(schedule.num_scales, device=device).repeat_interleave(lengths)
    return level_L[:, None] >= level_L if causal else level_L[:, None] == level_L


_PLAIN: list[tuple[type[nn.Module], str, Callable]] = [
    (Attention, "forward", _attention),
    (RotaryAttention, "project", _project),
    (CrossAttention, "forward", _cross_attention),
    (AdaLNBlock, "forward", _ada_ln_block),
    (GatedMlp, "forward", GluMlp.forward),
    (VARAttention, "project", _project_directions),
    (VARMlp, "forward", Mlp.forward),
    (LeanLinear, "forward", nn.Linear.forward),
]
