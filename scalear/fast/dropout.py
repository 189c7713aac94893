"""Dropout whose random numbers cost little: on CPUs PyTorch's own take as long as a matrix product."""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_LEVELS = 1 << 16  # probabilities are rounded to 1 / 65536, and what is kept is scaled up by just that
_AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dropout(self: nn.Dropout, x: Tensor) -> Tensor:
    """`nn.Dropout.forward`. Draws from the global generator."""
    return _Dropout.apply(x, self.p) if self.training and self.p else x


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
