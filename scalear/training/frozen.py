"""A frozen part of a module that stays out of its checkpoints, its average and its training mode."""

from functools import partial

from torch import Tensor, nn


def freeze(parent: nn.Module, name: str) -> None:
    """Freeze the submodule `parent.<name>`: no gradients, always in eval mode, not in `parent`'s state dict.

    State-dict hooks do it, so that every copy and every wrapper of the parent (EMA, DDP) behaves the same:
    saving drops the part's tensors, and loading leaves them as they are instead of reporting them missing.
    The hooks are functions of this file, not closures, so that spawned ranks can be sent the parent.
    """
    part = parent.get_submodule(name)
    part.requires_grad_(False)
    part.eval()
    part.train = partial(_stay_in_eval_mode, part)
    parent.register_state_dict_post_hook(partial(_drop, name))
    parent.register_load_state_dict_pre_hook(partial(_keep, name))


def _stay_in_eval_mode(part: nn.Module, mode: bool = True) -> nn.Module:
    """Takes the place of `part.train`, which its parent calls on all children."""
    return part


def _drop(name: str, parent: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    """After saving: remove the part's tensors."""
    for key in [key for key in state if key.startswith(f"{prefix}{name}.")]:
        del state[key]


def _keep(name: str, parent: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
    """Before loading: add the tensors that the part has already."""
    current = parent.get_submodule(name).state_dict()
    state.update({f"{prefix}{name}.{key}": tensor for key, tensor in current.items()})
