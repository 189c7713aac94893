"""Activations that the backward pass makes again instead of keeping them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from scalear.models.fused import is_small, plainly

_remaking: ContextVar[bool] = ContextVar("_remaking", default=True)


def remade(function: Callable[..., Any], *args: Any) -> AbstractContextManager[Any]:
    """function(*args), of which autograd does not keep the last result for what is done with it inside.

    The backward pass calls `function` again, each time that it would have read that result. The result is kept if it
    is small, inside `all_kept`, on other devices, and under torch.compile, which weighs this by itself.

    Args:
        function: Cheap, without randomness. Gives a tensor or several.
        args: Its arguments, kept instead; some tensor among them.
    """
    result = function(*args)
    last = result if isinstance(result, Tensor) else result[-1]
    if is_small(last) or plainly(last) or not torch.is_grad_enabled() or not _remaking.get():
        return nullcontext(result)  # which, unlike other contexts, does not keep torch.compile from what is inside
    return _forgetting(result, last, function, args)


@contextmanager
def all_kept() -> Iterator[None]:
    """Inside, `remade` does nothing: for what is made again as a whole by hooks of its own, which others would hide."""
    token = _remaking.set(False)
    try:
        yield
    finally:
        _remaking.reset(token)


@contextmanager
def _forgetting(result: Any, last: Tensor, function: Callable[..., Any], args: tuple) -> Iterator[Any]:
    kept = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
    known = _identity(last)
    autocast = torch.autocast(
        "cpu", torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"), cache_enabled=False
    )

    def make() -> Tensor:
        with torch.no_grad(), autocast:
            made = function(*kept)
        return made if isinstance(made, Tensor) else made[-1]

    def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
        # Detached, for a node that keeps its own result would otherwise keep itself.
        return make if _identity(saved) == known else saved.detach()

    def unpack(saved: Tensor | Callable[[], Tensor]) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield result


def _identity(x: Tensor) -> tuple:
    return x.data_ptr(), x.shape, x.stride(), x.dtype
