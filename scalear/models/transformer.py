"""The scale-wise autoregressive transformer: coarser scales in, semantics of every token out.

Legend: B batch, L tokens of all scales, l of one scale, C context channels, D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scalear.models.blocks import AdaLNBlock, Place
from scalear.models.layers import linear, normal_linear, var_std
from scalear.models.positions import Positions
from scalear.scales import ScaleSchedule


class Cache:
    """What an unfinished pyramid has left behind in the blocks, and the place in the schedule.

    Args:
        schedule: The scales that will be generated, in order.
        layers: One cache per block, in order.
    """

    def __init__(self, schedule: ScaleSchedule, layers: list[object]) -> None:
        self.schedule = schedule
        self.layers = layers
        self.next_scale = 0


class ScaleTransformer(nn.Module):
    """The transformer of FlowAR (paper section 3.2, eq. 6), FlexVAR and VAR, which differ in its parts alone.

    Scale 0 reads the class embedding, scale k > 0 a linear map of its context. Tokens see their own scale and
    all coarser ones. A stack is positions, blocks and a norm; FlowAR has two, with a linear map between them.

    Args:
        context_dim: C, channels of a context token.
        dim: D.
        depths: Blocks of each stack.
        num_classes: Classes; label `num_classes` is the null class of classifier-free guidance.
        scales: The schedule that is trained and sampled unless another is given.
        positions: Class of the positions; called with (dim, schedule).
        block: Class of the blocks; called with (dim, place).
        norm: Class of the norm after each stack; called with (dim).
        var_init: Let class embedding and context projection start as in VAR, from N(0, 1 / 3D), instead of FlowAR's
            N(0, 0.02^2) and Xavier's distribution.
        input_norm: Also normalise the input of the first stack, after its positions (FlowAR).
        output_positions: Add positions to the semantics, too (FlowAR).
        checkpoint_blocks: Recompute blocks in the backward pass: less memory, about a third more time.
    """

    def __init__(
        self,
        context_dim: int,
        dim: int,
        depths: list[int],
        num_classes: int,
        scales: str | list[int | tuple[int, int]],
        positions: Callable[[int, ScaleSchedule], Positions],
        block: Callable[[int, Place], AdaLNBlock],
        norm: Callable[[int], nn.Module],
        var_init: bool = False,
        input_norm: bool = False,
        output_positions: bool = False,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.schedule = ScaleSchedule.parse(scales)
        self.dim = dim
        self.num_classes = num_classes
        self.context_dim = context_dim
        self.checkpoint_blocks = checkpoint_blocks

        self.class_embedding = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.class_embedding.weight, std=var_std(dim) if var_init else 0.02)
        self.context_proj = normal_linear(context_dim, dim, var_std(dim)) if var_init else linear(context_dim, dim)
        self.input_norm = norm(dim) if input_norm else None
        self.between = nn.ModuleList([linear(dim, dim) for _ in depths[1:]])
        self.output_positions = output_positions
        num_tables = len(depths) + output_positions
        self.positions = nn.ModuleList([positions(dim, self.schedule) for _ in range(num_tables)])
        places = (Place(layer, sum(depths), self.schedule) for layer in range(sum(depths)))
        self.stacks = nn.ModuleList([nn.ModuleList([block(dim, next(places)) for _ in range(n)]) for n in depths])
        self.norms = nn.ModuleList([norm(dim) for _ in depths])
        shares = any(block.shares_modulation for block in self.blocks)
        self.shared_modulation = normal_linear(dim, 6 * dim, var_std(dim)) if shares else nn.Identity()

    @property
    def blocks(self) -> list[AdaLNBlock]:
        """Those of all stacks, in order."""
        return [block for stack in self.stacks for block in stack]

    def check(self, schedule: ScaleSchedule) -> None:
        """Refuse a schedule that the positions do not serve.

        Raises:
            ValueError: Names the schedule, and the one that they serve.
        """
        for positions in self.positions:
            positions.check(schedule)

    def embed(self, label_B: Tensor) -> Tensor:
        """Class indices to the condition cond_BD."""
        return self.class_embedding(label_B)

    def forward(self, context_BLC: Tensor, cond_BD: Tensor, schedule: ScaleSchedule) -> Tensor:
        """Semantics hidden_BLD of all scales at once.

        Args:
            context_BLC: Contexts of scales 1..K-1, joined (scale 0 has none).
            cond_BD: The condition.
            schedule: The K scales.

        Raises:
            ValueError: The positions serve another schedule only.
        """
        x_BLD = torch.cat([_class_tokens(cond_BD, schedule), self.context_proj(context_BLC)], dim=1)
        return self._run(x_BLD, cond_BD, schedule, 0, schedule.num_scales, None)

    def step(self, context_BlC: Tensor, cond_BD: Tensor, cache: Cache) -> Tensor:
        """Semantics hidden_BlD of the next scale, from its context (no tokens for scale 0) and the cache."""
        k = cache.next_scale
        x_BlD = self.context_proj(context_BlC) if k else _class_tokens(cond_BD, cache.schedule)
        hidden_BlD = self._run(x_BlD, cond_BD, cache.schedule, k, k + 1, cache)
        cache.next_scale += 1
        return hidden_BlD

    def make_cache(self, schedule: ScaleSchedule) -> Cache:
        """A place for all scales of a schedule."""
        return Cache(schedule, [block.make_cache(schedule.num_tokens) for block in self.blocks])

    def _run(
        self, x_BLD: Tensor, cond_BD: Tensor, schedule: ScaleSchedule, first: int, last: int, cache: Cache | None
    ) -> Tensor:
        # Scales `first` up to and without `last`: all of them, or with a cache the next one.
        positions = [table(schedule, first, last) for table in self.positions]
        given = schedule if cache is None else schedule.scale(first)
        layers = iter(cache.layers) if cache else None
        cond_B1D = F.silu(cond_BD)[:, None]
        block_cond = self.shared_modulation(cond_B1D)
        for index, (stack, norm) in enumerate(zip(self.stacks, self.norms, strict=True)):
            if index:
                x_BLD = self.between[index - 1](x_BLD)
            x_BLD = x_BLD + positions[index]
            if self.input_norm is not None and index == 0:
                x_BLD = self.input_norm(x_BLD, cond_B1D)
            for block in stack:
                if self.checkpoint_blocks and torch.is_grad_enabled():
                    x_BLD = checkpoint(block, x_BLD, block_cond, given, use_reentrant=False)
                else:
                    x_BLD = block(x_BLD, block_cond, given, next(layers) if layers else None)
            x_BLD = norm(x_BLD, cond_B1D)
        return x_BLD + positions[-1] if self.output_positions else x_BLD


def _class_tokens(cond_BD: Tensor, schedule: ScaleSchedule) -> Tensor:
    # Scale 0 is a single token, but need not be: then the positions tell its tokens apart.
    return cond_BD[:, None].expand(-1, schedule.lengths[0], -1)
