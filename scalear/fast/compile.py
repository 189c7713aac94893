"""torch.compile for what is repeated: the blocks of transformer and flow head, each kind of which is compiled once."""

import os
from collections.abc import Callable
from pathlib import Path

from torch import nn

from scalear.models.injections import FlowTransformer
from scalear.models.per_token import PerTokenMLP
from scalear.models.transformer import ScaleTransformer

# A kind of block has a few versions: one token or more, one shape or any, training, sampling, guided. The default
# limit of 8 is for all blocks that share code, and whatever goes beyond it is silently not compiled.
_VERSIONS = 64


def compile_blocks(model: nn.Module, backend: str | Callable = "inductor") -> None:
    """Let torch compile the blocks in a model when they are first called. Names of parameters stay what they are.

    Attention itself stays outside, so that graphs do not depend on the schedule: the first list of scales is compiled
    for its number of tokens, the second for any, and no further ones. All blocks of a kind share their graphs. What
    is compiled is kept in `~/.cache/scalear/inductor` for later runs, unless TORCHINDUCTOR_CACHE_DIR says otherwise.

    None of this has been run on a GPU yet.

    Args:
        model: A generator.
        backend: What graphs are given to, as in `torch.compile`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "scalear" / "inductor"))
    for network in model.modules():
        if isinstance(network, ScaleTransformer | FlowTransformer | PerTokenMLP):
            for block in network.blocks:
                block.compile(backend=backend, recompile_limit=_VERSIONS)
