"""Norm, clipping and finiteness of gradients: all that asks how a parameter lies on the processes of a run."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm


def gradient_norm(module: nn.Module) -> Tensor:
    """L2 norm of all gradients of a module, a scalar; 0 where there is none."""
    return get_total_norm([parameter.grad for _, parameter in _with_gradient(module)])


def clip_gradient(module: nn.Module, norm: Tensor, limit: float, by_value: bool) -> None:
    """Shorten the gradient of a module in place.

    Args:
        module: Its parameters that have gradients.
        norm: Their `gradient_norm`.
        limit: Longest norm; with `by_value` largest absolute value of an entry.
        by_value: Clip every entry on its own instead of scaling all alike.
    """
    parameters = [parameter for _, parameter in _with_gradient(module)]
    if by_value:
        clip_grad_value_(parameters, limit)
    else:
        clip_grads_with_norm_(parameters, limit, norm)


def not_finite(module: nn.Module) -> list[str]:
    """Names of the parameters whose gradient has NaN or infinite entries."""
    return [name for name, parameter in _with_gradient(module) if not parameter.grad.isfinite().all()]


def _with_gradient(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.grad is not None)
