"""Activations that the backward pass makes again instead of keeping them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from scalear.models.fused import plainly


def remade(function: Callable[..., Any], *args: Any) -> AbstractContextManager[Any]:
    """function(*args), of which autograd does not keep the last result for what is done with it inside.

    The backward pass calls `function` again, each time that it would have read that result. On other devices, and
    under torch.compile, which weighs this by itself, the result is kept.

    Args:
        function: Cheap, without randomness. Gives a tensor or several.
        args: Its arguments, kept instead; some tensor among them.
    """
    result = function(*args)
    last = result if isinstance(result, Tensor) else result[-1]
    if plainly(last) or not torch.is_grad_enabled():
        return nullcontext(result)  # which, unlike other contexts, does not keep torch.compile from what is inside
    return _forgetting(result, last, function, args)


@contextmanager
def _forgetting(result: Any, last: Tensor, function: Callable[..., Any], args: tuple) -> Iterator[Any]:
    kept = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
    address, shape = last.data_ptr(), last.shape
    autocast = (
        torch.autocast("cpu", torch.get_autocast_dtype("cpu"), cache_enabled=False)
        if torch.is_autocast_enabled("cpu")
        else nullcontext()
    )

    def make() -> Tensor:
        with torch.no_grad(), autocast:
            made = function(*kept)
        return made if isinstance(made, Tensor) else made[-1]

    def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
        return make if saved.data_ptr() == address and saved.shape == shape else saved

    def unpack(saved: Tensor | Callable[[], Tensor]) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield result
