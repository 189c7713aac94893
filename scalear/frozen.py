"""Networks that help training without being trained."""

from torch import nn


class Frozen(nn.Module):
    """Always in eval mode and in no checkpoint: the weights have a file of their own, which the subclass reads.

    Subclasses call `self.requires_grad_(False)` once they are built.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_keep_own_weights)

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    def state_dict(self, *args, destination: dict | None = None, prefix: str = "", keep_vars: bool = False) -> dict:
        """Nothing, on purpose."""
        return {} if destination is None else destination


def _keep_own_weights(module: Frozen, state_dict: dict, prefix: str, *_: object) -> None:
    """Let a strict `load_state_dict` of a parent find what `state_dict` left out."""
    state_dict.update({prefix + name: tensor for name, tensor in nn.Module.state_dict(module).items()})
