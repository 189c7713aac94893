"""The scale-wise autoregressive transformer: coarser scales in, semantics of every token out.

Legend: B batch, L tokens of all scales, l of one scale, C context channels, D width, N heads, d head width.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scalear.models.layers import AdaLNBlock, Attention, LayerCache, Rotary, gated_mlp, linear, rms_norm
from scalear.scales import ScaleSchedule


class TokenPositions(nn.Module):
    """One learned vector per token of the whole schedule.

    Args:
        schedule: The only schedule that these positions serve.
        dim: D.
    """

    def __init__(self, schedule: ScaleSchedule, dim: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.table_LD = nn.Parameter(torch.empty(schedule.num_tokens, dim))
        self.table_LD.no_weight_decay = True
        nn.init.normal_(self.table_LD, std=0.02)

    def forward(self, first_scale: int, num_scales: int) -> Tensor:
        """(l, D) for the tokens of `num_scales` scales from `first_scale` on."""
        offsets = self.schedule.offsets
        return self.table_LD[offsets[first_scale] : offsets[first_scale + num_scales]]


class Cache:
    """Keys, values and place of an unfinished pyramid: an explicit argument of `ScaleTransformer.step`."""

    def __init__(self, layers: list[LayerCache]) -> None:
        self.layers = layers
        self.next_scale = 0


class ScaleTransformer(nn.Module):
    """FlowAR's autoregressive transformer (paper section 3.2, eq. 6; details from the official code).

    Scale 0 reads the class embedding, scale k > 0 a linear map of its context. Tokens see their own scale and
    all coarser ones. Two stacks of blocks follow one another, each with learned token positions added in front;
    a third table is added to the result, the semantics.

    Args:
        context_dim: C, channels of a context token.
        dim: D.
        num_heads: N.
        depths: Blocks of the first and of the second stack.
        num_classes: Classes; label `num_classes` is the null class of classifier-free guidance.
        scales: The schedule.
        dropout: In attention weights, attention output and MLP, in training.
        checkpoint_blocks: Recompute blocks in the backward pass: less memory, about a third more time.
    """

    def __init__(
        self,
        context_dim: int,
        dim: int,
        num_heads: int,
        depths: tuple[int, int],
        num_classes: int,
        scales: str | list[int | tuple[int, int]],
        dropout: float = 0.0,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.schedule = ScaleSchedule.parse(scales)
        self.dim = dim
        self.num_heads = num_heads
        self.num_classes = num_classes
        self.context_dim = context_dim
        self.checkpoint_blocks = checkpoint_blocks

        self.class_embedding = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.class_embedding.weight, std=0.02)
        self.context_proj = linear(context_dim, dim)
        self.input_norm = rms_norm(dim, affine=True)
        self.between = linear(dim, dim)
        self.positions = nn.ModuleList([TokenPositions(self.schedule, dim) for _ in range(3)])
        rotary = Rotary(dim // num_heads, side=max(self.schedule.sizes[-1]))

        def block() -> AdaLNBlock:
            attention = Attention(dim, num_heads, rotary, causal=True, dropout=dropout)
            return AdaLNBlock(dim, dim, attention, gated_mlp(dim, dropout))

        self.stacks = nn.ModuleList([nn.ModuleList([block() for _ in range(depth)]) for depth in depths])
        self.norms = nn.ModuleList([rms_norm(dim, affine=True) for _ in depths])

    def embed(self, label_B: Tensor) -> Tensor:
        """Class indices to the condition cond_BD."""
        return self.class_embedding(label_B)

    def forward(self, context_BLC: Tensor, cond_BD: Tensor) -> Tensor:
        """Semantics hidden_BLD of all scales at once.

        Args:
            context_BLC: Contexts of scales 1..K-1, joined (scale 0 has none).
            cond_BD: The condition.
        """
        x_BLD = torch.cat([cond_BD[:, None], self.context_proj(context_BLC)], dim=1)
        return self._run(x_BLD, cond_BD, 0, self.schedule, cache=None)

    def step(self, context_BlC: Tensor, cond_BD: Tensor, cache: Cache) -> Tensor:
        """Semantics hidden_BlD of the next scale, from its context (no tokens for scale 0) and the cache."""
        k = cache.next_scale
        x_BlD = cond_BD[:, None] if k == 0 else self.context_proj(context_BlC)
        hidden_BlD = self._run(x_BlD, cond_BD, k, self.schedule.scale(k), cache)
        cache.next_scale += 1
        return hidden_BlD

    def make_cache(self, batch: int, device: torch.device, dtype: torch.dtype) -> Cache:
        """Memory for `batch` rows and all scales."""
        shape = (batch, self.num_heads, self.schedule.num_tokens, self.dim // self.num_heads)
        num_layers = sum(len(stack) for stack in self.stacks)
        pairs = torch.empty((num_layers, 2, *shape), device=device, dtype=dtype)
        return Cache([LayerCache(*pair) for pair in pairs])

    def _run(
        self, x_BLD: Tensor, cond_BD: Tensor, first_scale: int, schedule: ScaleSchedule, cache: Cache | None
    ) -> Tensor:
        positions = [table(first_scale, schedule.num_scales) for table in self.positions]
        cond_B1D = nn.functional.silu(cond_BD)[:, None]
        layers = iter(cache.layers) if cache else None
        # The official code normalises after adding the first positions, but not after the second.
        x_BLD = self.input_norm(x_BLD + positions[0])
        for index, (stack, norm) in enumerate(zip(self.stacks, self.norms, strict=True)):
            if index == 1:
                x_BLD = self.between(x_BLD) + positions[1]
            for block in stack:
                if self.checkpoint_blocks and torch.is_grad_enabled():
                    x_BLD = checkpoint(block, x_BLD, cond_B1D, schedule, use_reentrant=False)
                else:
                    x_BLD = block(x_BLD, cond_B1D, schedule, next(layers) if layers else None)
            x_BLD = norm(x_BLD)
        return x_BLD + positions[2]
