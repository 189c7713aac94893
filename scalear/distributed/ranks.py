"""What the processes of a run agree on."""

import os
from collections.abc import Callable, Iterable

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import distributed
from torch.distributed import TCPStore

_LAUNCHERS: tuple[type[ClusterEnvironment], ...] = (
    TorchElasticEnvironment,
    SLURMEnvironment,
    LSFEnvironment,
    MPIEnvironment,
)
_INHERITED = "SCALEAR_OF_RANK_ZERO"  # "parent:text", for the processes that Lightning starts itself
_stores: list[TCPStore] = []  # as long as this process lives: later ranks ask that of rank 0


def text_of_rank_zero(make: Callable[[], str]) -> str:
    """What `make` gives on rank 0, on all ranks of this run, before a Trainer connects them.

    Args:
        make: Called on rank 0 alone; its text is not empty.
    """
    launcher = next((launcher for launcher in _LAUNCHERS if launcher.detect()), None)
    if launcher is not None:
        return _from_store(launcher(), make)
    parent, _, text = os.environ.get(_INHERITED, "").partition(":")
    if "LOCAL_RANK" in os.environ and parent == str(os.getppid()):
        return text
    text = make()
    os.environ[_INHERITED] = f"{os.getpid()}:{text}"
    return text


def names_of_all_ranks(names: Iterable[str]) -> list[str]:
    """Every name that some rank gives, once, in one order for all of them. Once they are connected."""
    gathered = [list(names)]
    if distributed.is_initialized():
        gathered *= distributed.get_world_size()
        distributed.all_gather_object(gathered, gathered[0])
    return list(dict.fromkeys(name for part in gathered for name in part))


def _from_store(environment: ClusterEnvironment, make: Callable[[], str]) -> str:
    if environment.world_size() == 1:
        return make()
    first = environment.global_rank() == 0
    # torchrun serves a store itself. Otherwise the process group, which comes later, shares the one that is made here.
    serves = first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address = environment.main_address, environment.main_port
    store = TCPStore(*address, is_master=serves, wait_for_workers=False, multi_tenant=True)
    _stores.append(store)
    key = f"scalear {len(_stores)}"
    if first:
        store.set(key, make())
    return store.get(key).decode()
