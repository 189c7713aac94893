"""Gradients on their way to the optimizer: one norm is logged, clips, and stops a run before it is spoilt."""

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from scalear.data.batch import Batch
from scalear.training.losses import NonFiniteLossError


class GuardedModule(LightningModule):
    """A LightningModule that logs `train/grad_norm` before clipping and never steps on NaN or infinite gradients.

    A finite loss can have such a gradient. It raises NonFiniteLossError, on all ranks at once because gradients are
    averaged by then, and before the optimizer moves. Loss scaling (16-mixed) meets infinite gradients by design: its
    scaler leaves out those steps itself, and nothing is raised.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window_keys: list[str] = []  # of the batches whose gradients have accumulated

    def clipped_parts(self) -> list[nn.Module]:
        """Parts whose gradients are clipped each on its own; together all that is trained."""
        return [self]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._window_keys += batch.keys

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        parts = [list(_with_gradient(part)) for part in self.clipped_parts()]
        norms = [get_total_norm([parameter.grad for _, parameter in part]) for part in parts]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if getattr(self.trainer.precision_plugin, "scaler", None) is None and not norm.isfinite():
            self._refuse()
        self._window_keys = []
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("train/grad_norm", norm)
        if not gradient_clip_val:
            return
        for part, part_norm in zip(parts, norms, strict=True):
            parameters = [parameter for _, parameter in part]
            if gradient_clip_algorithm == "value":
                clip_grad_value_(parameters, gradient_clip_val)
            else:
                clip_grads_with_norm_(parameters, gradient_clip_val, part_norm)

    def _refuse(self) -> None:
        bad = [name for name, parameter in _with_gradient(self) if not parameter.grad.isfinite().all()]
        named = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise NonFiniteLossError(
            f"the gradient is not finite at step {self.global_step}, though the loss is, in "
            f"{named or 'no single parameter, but their norm overflows'}; batch keys: {self._window_keys}. "
            "Lower the learning rate, or look at these samples"
        )


def _with_gradient(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.grad is not None)
