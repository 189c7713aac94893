"""Losses and gradients of a step: logged, and refused where they are not finite, before they reach the weights."""

from math import isinf, isnan
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from scalear.data.batch import Batch
from scalear.distributed.gradients import clip_gradient, gradient_norm, not_finite
from scalear.distributed.ranks import names_of_all_ranks
from scalear.training.dashboard import Charts
from scalear.training.ema import averaged_state, leave_average
from scalear.training.loggers import log_text, logs_now
from scalear.training.optim import OptimizerSettings
from scalear.training.run_length import run_length


class NonFiniteLossError(ValueError):
    """A loss, its gradient or a metric is NaN or infinite. All ranks raise it at once, so that a step can be saved.

    Attributes:
        exit_code: Of a command that ends so.
    """

    exit_code = 3


def mean_losses(
    trainer: Trainer, terms: dict[str, Tensor], batch: Batch, names_differ: bool = False
) -> dict[str, Tensor]:
    """Mean of every term over the ranks that have it, detached; on all ranks the same.

    Args:
        trainer: Knows the ranks.
        terms: Scalars by name.
        batch: This rank's samples, for the message.
        names_differ: Ranks may have other names. They tell each other first, which costs a round between processes.

    Raises:
        NonFiniteLossError: A term is not finite on some rank.
    """
    names = names_of_all_ranks(terms) if names_differ else list(terms)
    here = {name: value.detach().float() for name, value in terms.items()}
    absent = torch.zeros_like(next(iter(here.values())))
    values = torch.stack([here.get(name, absent) for name in names])
    shares = values.new_tensor([name in here for name in names])
    values, shares = trainer.strategy.reduce(torch.stack([values, shares]), reduce_op="mean")
    values = values / shares
    means = dict(zip(names, values, strict=True))
    if not values.isfinite().all():
        bad = {name: value.item() for name, value in means.items() if not value.isfinite()}
        raise NonFiniteLossError(
            f"the loss is not finite at step {trainer.global_step}: {bad}; batch keys: {batch.keys}. "
            "Lower the learning rate, or look at these samples"
        )
    return means


class GuardedModule(LightningModule):
    """A LightningModule that logs learning rate and norm of the gradient, and never steps on NaN or infinite gradients.

    A finite loss can have such a gradient. It raises NonFiniteLossError, on all ranks at once because gradients are
    averaged by then, and before the optimizer moves. Loss scaling (16-mixed) meets infinite gradients by design: its
    scaler leaves out those steps itself, and nothing is raised.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window_keys: list[str] = []  # of the batches whose gradients have accumulated
        self._optimizer_line = ""

    @property
    def charts(self) -> dict[str, Charts]:
        """What TensorBoard shows of training first; see `show_charts`."""
        return {"losses": {"loss": ["(train|val)/loss$"]}, "quality": {}}

    def clipped_parts(self) -> list[nn.Module]:
        """Parts whose gradients are clipped each on its own; together all that is trained."""
        return [self]

    def build_optimizer(self, settings: OptimizerSettings, modules: nn.Module | list[nn.Module]) -> dict:
        """For `configure_optimizers`: says in one line, and to loggers, what follows from the run."""
        run = run_length(self.trainer)
        self._optimizer_line = settings.describe(run)
        rank_zero_info(self._optimizer_line)
        return settings.build(modules, run)

    def on_fit_start(self) -> None:
        log_text(self.loggers, "config/optimizer", self._optimizer_line)  # not before, when a run may still be refused

    def export(self) -> None:
        """Leave what was trained as a file of its own. Called with the average of the weights, if there is one."""

    def on_fit_end(self) -> None:
        # Callbacks went first: with weight averaging the module already holds the average. Not at the end of training,
        # which a run that was stopped before its export and goes on from its last step does not reach.
        if not self.trainer.fast_dev_run:
            self.export()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning asks no callback where weights alone are saved (save_weights_only).
        if "optimizer_states" not in checkpoint:
            checkpoint["state_dict"] = averaged_state(self.trainer, checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            leave_average(self.trainer, checkpoint)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._window_keys += batch.keys

    def on_validation_epoch_end(self) -> None:
        values = {
            name: value.item() for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")
        }
        # Of PSNR infinity is a value: where nothing is lost.
        bad = [f"{name} is {x}" for name, x in values.items() if isnan(x) or (isinf(x) and "loss" in name)]
        if bad:
            raise NonFiniteLossError(
                f"{', '.join(bad)} at step {self.global_step}: the weights have diverged; take an earlier checkpoint "
                "and a lower learning rate"
            )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        parts = self.clipped_parts()
        norms = [gradient_norm(part) for part in parts]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if getattr(self.trainer.precision_plugin, "scaler", None) is None and not norm.isfinite():
            self._refuse()
        self._window_keys = []
        if logs_now(self.trainer, self.global_step + 1):
            # The same of all groups of parameters. The norm is that before clipping.
            self.log_dict({"train/grad_norm": norm, "train/lr": optimizer.param_groups[0]["lr"]})
        if not gradient_clip_val:
            return
        for part, part_norm in zip(parts, norms, strict=True):
            clip_gradient(part, part_norm, gradient_clip_val, by_value=gradient_clip_algorithm == "value")

    def _refuse(self) -> None:
        bad = not_finite(self)
        named = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise NonFiniteLossError(
            f"the gradient is not finite at step {self.global_step}, though the loss is, in "
            f"{named or 'no single parameter, but their norm overflows'}; batch keys: {self._window_keys}. "
            "Lower the learning rate, or look at these samples"
        )
