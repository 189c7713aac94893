"""Dropout whose random numbers cost little: on CPUs PyTorch's own take as long as a matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_LEVELS = 1 << 16  # probabilities are rounded to 1 / 65536, and what is kept is scaled up by just that
_AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dropout(x: Tensor, prob: float, training: bool) -> Tensor:
    """Zeros with probability `prob`, the rest divided by 1 - prob. Draws from the global generator."""
    if not training or prob == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, prob)
    return _Dropout.apply(x, prob)


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


class Drop:
    """Which numbers of a tensor are dropped, one bit each, drawn when it is made.

    Args:
        shape: Of the tensor.
        prob: Probability of being dropped.
    """

    def __init__(self, shape: torch.Size, prob: float) -> None:
        num = shape.numel()
        self._padded = -(-num // 8) * 8
        dropped = min(round(prob * _LEVELS), _LEVELS - 1)
        # Four numbers of 16 bits from one random word.
        words = torch.empty(self._padded // 4, dtype=torch.int64).random_(-(2**63), None)
        levels = words.view(torch.int16)
        kept = torch.ge(levels, dropped - _LEVELS // 2, out=levels).to(torch.uint8).view(8, -1)
        self._bits = kept[0].clone()
        for place in range(1, 8):
            self._bits |= kept[place] << place
        self.scale = _LEVELS / (_LEVELS - dropped)

    def clear_(self, x: Tensor) -> Tensor:
        """In place: zero where dropped. Clearing bits, unlike a product with booleans, takes no longer than a copy.

        What is kept is not scaled: multiply by `scale` where that is cheapest.
        """
        kept = torch.stack([self._bits >> place for place in range(8)]).bitwise_and_(1).view(torch.int8).neg_()
        bits = x.view(_AS_INTEGERS[x.element_size()])
        bits &= kept.view(-1)[: x.numel()].view(x.shape).to(bits.dtype)
        return x


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, prob: float) -> Tensor:
        ctx.drop = Drop(x.shape, prob)
        return ctx.drop.clear_(x * ctx.drop.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.drop.clear_(grad * ctx.drop.scale), None
