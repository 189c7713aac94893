"""Softmax attention, the one place that every model here calls."""

import torch
import torch.nn.functional as F
from torch import Tensor

# On CPUs PyTorch's fused kernel is several times slower than two plain products on short sequences, most of all
# in the backward pass; beyond this many keys the scores no longer fit the cache.
SHORT = 256


def attend(q_BNld: Tensor, k_BNLd: Tensor, v_BNLd: Tensor, dropout: float = 0.0, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v.

    Args:
        q_BNld: Queries (B, N, l, d): batch, heads, tokens, head width.
        k_BNLd: Keys, all of which every query sees.
        v_BNLd: Values.
        dropout: Probability of dropping an attention weight.
        scale: 1 / sqrt(d) by default.

    Returns:
        (B, N, l, d).
    """
    if q_BNld.device.type == "cpu" and k_BNLd.shape[-2] <= SHORT:
        scale = q_BNld.shape[-1] ** -0.5 if scale is None else scale
        weight_BNlL = ((q_BNld if scale == 1 else q_BNld * scale) @ k_BNLd.transpose(-1, -2)).softmax(-1)
        return F.dropout(weight_BNlL, dropout) @ v_BNLd
    return F.scaled_dot_product_attention(q_BNld, k_BNLd, v_BNLd, dropout_p=dropout, scale=scale)


def attend_masked(
    q_BNLd: Tensor,
    k_BNLd: Tensor,
    v_BNLd: Tensor,
    bias_LL: Tensor,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v for short sequences on a CPU: all weights are held at once.

    Args:
        q_BNLd: Queries.
        k_BNLd: Keys.
        v_BNLd: Values.
        bias_LL: -inf where a query (row) must not see a key, else 0; of the queries' dtype.
        dropout: As in `attend`.
        scale: As in `attend`.

    Returns:
        (B, N, L, d).
    """
    scale = q_BNLd.shape[-1] ** -0.5 if scale is None else scale
    q_nLd, k_nLd, v_nLd = (x_BNLd.flatten(0, 1) for x_BNLd in (q_BNLd, k_BNLd, v_BNLd))
    weight_nLL = torch.baddbmm(bias_LL, q_nLd, k_nLd.transpose(-1, -2), alpha=scale).softmax(-1)
    return torch.bmm(F.dropout(weight_nLL, dropout), v_nLd).view_as(q_BNLd)
