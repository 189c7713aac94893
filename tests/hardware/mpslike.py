"""A device as far from the CPU as Apple's GPUs: `mpslike`, which refuses float64 and tensors of the CPU.

Each of its tensors holds one of the CPU, which computes, so that all of training and sampling can run there. To import
this registers the device with torch, for good: only in a process of its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "mpslike"
_TAKES_CPU_TENSORS = {"copy_", "index", "index_put", "index_put_", "_index_put_impl_"}  # as real devices do


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE = torch.device(NAME, 0)


class _DeviceTensor(Tensor):
    """To torch a tensor of the device; what is done with it comes to `__torch_dispatch__`."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "_DeviceTensor":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, held.shape, **layout, dtype=held.dtype, device=DEVICE)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> list:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = {id(x.held): x for x in tensors if isinstance(x, cls)}
        name = function.overloadpacket.__name__
        if name not in _TAKES_CPU_TENSORS and any(x.ndim for x in tensors if not isinstance(x, cls)):
            raise RuntimeError(f"{function} takes tensors of both {NAME} and the CPU")
        target = kwargs.get("device") or DEVICE
        on_cpu = kwargs | {"device": torch.device("cpu")} if "device" in kwargs else kwargs
        held_args, held_kwargs = tree_map_only(cls, lambda x: x.held, (args, on_cpu))
        out = function(*held_args, **held_kwargs)
        if name == "copy_":
            return args[0]
        if torch.device(target).type != NAME:
            return out
        # What was changed in place is the same tensor as before.
        return tree_map_only(Tensor, lambda x: ours[id(x)] if id(x) in ours else _on_device(function, x), out)


def _on_device(function: Callable, held: Tensor) -> _DeviceTensor:
    if held.dtype == torch.float64:
        raise TypeError(f"{function} makes a float64 tensor, which {NAME} has not")
    return _DeviceTensor(held)


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> Tensor:
    held = torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format)
    return _on_device(torch.empty, held)


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return _on_device(torch.empty_strided, torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    source, held = (x.held if isinstance(x, _DeviceTensor) else x for x in (source, target))
    held.copy_(source)
    return target


_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
