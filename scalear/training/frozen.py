"""A frozen part of a LightningModule that stays out of its checkpoints, its average and its training mode."""

from torch import Tensor, nn


def freeze(parent: nn.Module, name: str) -> None:
    """Freeze the submodule `parent.<name>`: no gradients, always in eval mode, not in `parent`'s state dict.

    State-dict hooks do it, so that every copy and every wrapper of the parent (EMA, DDP) behaves the same:
    saving drops the part's tensors, and loading leaves them as they are instead of reporting them missing.
    """
    part = parent.get_submodule(name)
    part.requires_grad_(False)
    part.eval()
    # A frozen part is never in training mode, whatever train() its parent gets.
    part.train = lambda mode=True: part

    def drop(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}{name}.")]:
            del state[key]

    def keep(module: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
        current = module.get_submodule(name).state_dict()
        state.update({f"{prefix}{name}.{key}": tensor for key, tensor in current.items()})

    parent.register_state_dict_post_hook(drop)
    parent.register_load_state_dict_pre_hook(keep)
