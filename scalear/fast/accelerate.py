"""Speed: other ways to compute what `scalear.models` says plainly. Nothing there knows of this room."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scalear.fast import attention, dropout, mlp, norms, qkv, scan
from scalear.models.attention import Rotary, ScaledDotProduct
from scalear.models.layers import GatedMlp
from scalear.models.mamba import Mamba
from scalear.models.norms import AdaLN
from scalear.models.var_block import VARAttention
from scalear.tokenizers.conv import AttentionBlock

# Plain methods, and what takes their place on CPUs.
ON_CPU: dict[Callable, Callable] = {
    ScaledDotProduct.forward: attention.scaled_dot_product,
    AttentionBlock.attend: attention.attend_to_all,
    Rotary.split_heads: qkv.split_turned,
    VARAttention.split_directions: qkv.split_directions,
    AdaLN.forward: norms.ada_ln,
    GatedMlp.forward: mlp.gated_mlp,
    nn.Dropout.forward: dropout.dropout,
}
# Everywhere: the plain recurrence keeps the states of all tokens for its backward pass.
EVERYWHERE: dict[Callable, Callable] = {Mamba.scan: scan.scan}


def accelerate(model: nn.Module) -> None:
    """Let the modules inside a model take faster ways to the same results, up to rounding, where they are known to pay.

    Names of parameters stay what they are. Methods that a subclass has changed stay its own. On CPUs alone, and not
    inside graphs of torch.compile; only Mamba's scan is another everywhere.
    """
    for module in model.modules():
        for plain, fast in ON_CPU.items():
            _swap(module, plain, partial(_on_cpu, fast, plain, module))
        for plain, fast in EVERYWHERE.items():
            _swap(module, plain, partial(fast, module))


def _swap(module: nn.Module, plain: Callable, taken: Callable) -> None:
    if getattr(type(module), plain.__name__, None) is plain:
        setattr(module, plain.__name__, taken)


def _on_cpu(fast: Callable, plain: Callable, module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    taken = plain if x.device.type != "cpu" or torch.compiler.is_compiling() else fast
    return taken(module, x, *args, **kwargs)
