"""Norms, and how a condition shifts and scales what they give.

Legend: B batch, L tokens, D width.
"""

from torch import Tensor, nn

from scalear.models.layers import normal_linear, var_std


def modulate(x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN: x (1 + scale) + shift, of a normalised x; shift and scale are (B, 1, D) or (B, L, D)."""
    return x_BLD * (1 + scale) + shift


class AdaLN(nn.Module):
    """A norm whose result is shifted and scaled, for the matrix product that follows.

    Args:
        norm: Without a weight.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return modulate(self.norm(x_BLD), shift, scale)


def rms_norm(dim: int, affine: bool) -> nn.RMSNorm:
    """RMS norm with the official epsilon; only norms outside blocks carry a weight."""
    return nn.RMSNorm(dim, eps=1e-6, elementwise_affine=affine)


class PlainNorm(nn.RMSNorm):
    """FlowAR's norm at the ends of its stacks: RMS norm with a weight, whatever the condition.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x_BLD: Tensor, cond_B1D: Tensor) -> Tensor:
        return super().forward(x_BLD)


class ModulatedNorm(nn.Module):
    """VAR's norm before the head: LayerNorm, scaled and shifted by the condition.

    Args:
        dim: D, also of the condition.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = normal_linear(dim, 2 * dim, 0.5 * var_std(dim))

    def forward(self, x_BLD: Tensor, cond_B1D: Tensor) -> Tensor:
        scale, shift = self.modulation(cond_B1D).chunk(2, dim=-1)
        return modulate(self.norm(x_BLD), shift, scale)
