"""CUDA graphs of a function that is called over and over: one launch for all of its kernels.

A step of a flow head is hundreds of kernels, and launching those takes longer than a small batch keeps the GPU busy.
Untested: this has never been run on a GPU. Nothing else uses it.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class StepGraphs:
    """Calls functions of CUDA tensors as graphs, one for every key and set of shapes, made when it is first met.

    The functions must not draw random numbers, nor wait for the GPU. What they read beyond their inputs, such as
    weights, must stay where it is in memory for as long as the key is the same; its values may change.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, _StepGraph] = {}

    def __call__(self, function: Callable[..., Tensor], key: Hashable, *inputs: Tensor) -> Tensor:
        """function(*inputs), without gradients; not called where there is a graph for the key."""
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = key, dtype, *((x.shape, x.dtype, x.device) for x in inputs)
        if key not in self._graphs:
            self._graphs[key] = _StepGraph(function, inputs, dtype)
        return self._graphs[key](*inputs)

    def __reduce__(self) -> tuple[type, tuple]:
        return StepGraphs, ()  # copies of a model have their weights elsewhere: they make graphs of their own


class _StepGraph:
    # Inputs and output serve in and out of inference mode. Casts of weights are made in the graph: those that autocast
    # keeps are gone when it ends.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype | None) -> None:
        self._inputs = [x.clone() for x in inputs]
        self._graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False):
            with torch.cuda.stream(side):  # a first call compiles, loads and looks up what must not be captured
                function(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self._graph):
                self._output = function(*self._inputs)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output.clone()
