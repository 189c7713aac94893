"""The models without any of their shortcuts: the baseline of benchmarks, and what fast paths are tested against.

Eager operations on whole tensors, scaled dot-product attention under a dense block-causal mask, rotary tables and
masks made on every call, every module cast by autocast on its own. The weights are those of the model at hand.
"""

import contextlib
import types
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from scalear.models.blocks import AdaLNBlock
from scalear.models.cache import LayerCache
from scalear.models.layers import Attention, CrossAttention, Rotary
from scalear.scales import ScaleSchedule


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Lets the layers inside `model` take the plain way."""
    changed = [
        (module, forward)
        for module in model.modules()
        for kind, forward in _FORWARDS.items()
        if isinstance(module, kind)
    ]
    for module, forward in changed:
        module.forward = types.MethodType(forward, module)
    try:
        yield
    finally:
        for module, _ in changed:
            del module.forward


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


def _cross_attention(self: CrossAttention, x_BLD: Tensor, cond_BLD: Tensor, schedule: ScaleSchedule) -> Tensor:
    q_BNLd = rearrange(self.q(x_BLD), "B L (N d) -> B N L d", N=self.num_heads)
    k_BNLd, v_BNLd = rearrange(self.kv(cond_BLD), "B L (c N d) -> c B N L d", c=2, N=self.num_heads)
    q_BNLd, k_BNLd = self.rotary(q_BNLd, k_BNLd, schedule)
    mask_LL = _mask(schedule, False, x_BLD.device)
    out_BNLd = F.scaled_dot_product_attention(q_BNLd, k_BNLd, v_BNLd, mask_LL)
    return self.proj(rearrange(out_BNLd, "B N L d -> B L (N d)"))


def _ada_ln_block(
    self: AdaLNBlock, x_BLD: Tensor, cond: Tensor, schedule: ScaleSchedule, cache: LayerCache | None = None
) -> Tensor:
    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = self.modulation(cond).chunk(6, dim=-1)
    x_BLD = x_BLD + self.drop_path(gate_1 * self.attention(self.norm(x_BLD) * (1 + scale_1) + shift_1, schedule, cache))
    return x_BLD + self.drop_path(gate_2 * self.mlp(self.norm(x_BLD) * (1 + scale_2) + shift_2))


def _rotary(self: Rotary, q_BNLd: Tensor, k_BNLd: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    half = self.head_dim // 2
    frequencies = 10000.0 ** (-2.0 * torch.arange(half // 2, device=q_BNLd.device) / half)
    angles = []
    for height, width in schedule.sizes:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([rows.flatten() * self.side / height, columns.flatten() * self.side / width], dim=-1)
        angles.append((places.to(frequencies)[:, :, None] * frequencies).flatten(1))
    turn = torch.polar(torch.ones(()), torch.cat(angles))

    def rotate(x_BNLd: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x_BNLd.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2).to(x_BNLd.dtype)

    return rotate(q_BNLd), rotate(k_BNLd)


def _mask(schedule: ScaleSchedule, causal: bool, device: torch.device) -> Tensor:
    lengths = torch.tensor(schedule.lengths, device=device)
    level_L = torch.arange(schedule.num_scales, device=device).repeat_interleave(lengths)
    return level_L[:, None] >= level_L if causal else level_L[:, None] == level_L


_FORWARDS: dict[type[nn.Module], Callable] = {
    Attention: _attention,
    CrossAttention: _cross_attention,
    AdaLNBlock: _ada_ln_block,
    Rotary: _rotary,
}
