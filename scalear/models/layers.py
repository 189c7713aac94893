"""Layers that all transformers here are made of: linear maps and how they start, MLPs, dropped paths.

Legend: B batch, L tokens, D width of the transformer at hand.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from timm.layers import GluMlp
from torch import Tensor, nn


class GatedMlp(GluMlp):
    """The MLP of all FlowAR blocks: two thirds of 4 D hidden units, gated by exact GELU (the "SwiGLU" of the code).

    Args:
        dim: D.
        dropout: On the hidden units and on the output, in training.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__(dim, 2 * int(dim * 4 * 2 / 3), act_layer=nn.GELU, gate_last=False, drop=dropout)
        for layer in (self.fc1, self.fc2):
            init_linear(layer)


class DropPath(nn.Module):
    """Drops whole samples in training, with its own probability in every block.

    Which is a tensor, since torch.compile takes numbers for constants and would compile every block anew.

    Args:
        prob: Probability of being dropped.

    Raises:
        ValueError: It is not in [0, 1).
    """

    def __init__(self, prob: float) -> None:
        super().__init__()
        if not 0 <= prob < 1:
            raise ValueError(f"drop_path must be at least 0 and less than 1, got {prob}")
        self.register_buffer("keep_prob", torch.tensor(1.0 - prob), persistent=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Zeros, or x over the probability of being kept."""
        if not self.training:
            return x_BLD
        kept_B11 = self.keep_prob.expand(len(x_BLD), 1, 1).bernoulli()
        return x_BLD * (kept_B11 / self.keep_prob).to(x_BLD.dtype)


def linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """A linear layer, initialised as all of FlowAR's."""
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    init_linear(layer)
    return layer


def zero_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer that starts at exactly zero."""
    layer = nn.Linear(in_dim, out_dim)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def normal_linear(in_dim: int, out_dim: int, std: float, bias: bool = True) -> nn.Linear:
    """A linear layer with normal weights and zero biases, as VAR initialises them."""
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    init_normal(layer, std)
    return layer


def init_linear(layer: nn.Linear) -> None:
    """Xavier-uniform weights and zero biases, as the official FlowAR initialises every linear layer."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_normal(layer: nn.Linear, std: float) -> None:
    """Normal weights, cut off at +-2 (official code), and zero biases."""
    nn.init.trunc_normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def var_std(dim: int) -> float:
    """Standard deviation that VAR's weights of a transformer of width `dim` start with, up to factors."""
    return (3 * dim) ** -0.5


def require_heads(dim: int, num_heads: int) -> None:
    """Refuse a width that heads do not share evenly.

    Raises:
        ValueError: Names both.
    """
    if dim % num_heads:
        raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")


def cached_table(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of a function that makes a table from sizes, schedules and devices: makes each once.

    Outside inference mode, since a table made while sampling must also serve a later backward pass; and outside graphs
    of torch.compile, which would make it anew and serve one schedule only. Random schedules repeat, so that a few
    hundred tables of each kind are kept.
    """
    return torch.compiler.disable(lru_cache(maxsize=2048)(torch.inference_mode(False)(make)))
