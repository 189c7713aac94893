"""Makes a resumed run continue with exactly the batches that the uninterrupted run would have seen."""

import warnings
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from scalear.data.batch import Batch

if TYPE_CHECKING:
    from scalear.data.datamodule import ShardDataModule


class StreamPosition(Callback):
    """Moves the datamodule along its stream, and Lightning's counters in step with it.

    A batch is used once its gradient was *stepped*. A checkpoint can be written later than that: in the middle of an
    accumulation window, after a validation, at the end of an epoch, on an exception in the next batch. The weights are
    still those of the last step, so the checkpoint gets Lightning's counters of that moment, and the stream position
    of that moment. Every resume then starts from one kind of state: "the last used batch has just ended".

    Args:
        data: The datamodule that the trainer reads. It puts this callback before all others.
    """

    def __init__(self, data: "ShardDataModule") -> None:
        self._data = data
        self._counters: dict[str, Any] | None = None  # of the fit loop, after the last used batch
        self._global_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._data.check_splits()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._counters = checkpoint["loops"]["fit_loop"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._global_step = trainer.global_step
        # Lightning cannot know that our loader starts where it should, and would warn.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        loop = trainer.fit_loop.epoch_loop
        if not loop.restarted_on_train_batch_end:
            return
        if loop.batch_progress.is_last_batch:
            # The epoch is over. Lightning would see that only if the next one, whose loader is here already, is not
            # longer. Begin it like any other.
            loop.batch_progress.increment_completed()
            loop._batches_that_stepped += 1
            loop.restarting = False
            loop.reset_restart_stage()
            trainer.fit_loop.reset_restart_stage()
        else:
            # Differs from what was loaded if the global batch size has changed.
            current = loop.batch_progress.current
            current.ready = current.started = current.processed = self._data.num_done
            current.completed = self._data.num_done - 1  # Lightning adds the batch that "has just ended"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._data.check_global_batch()  # which callbacks may have changed since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if trainer.global_step == self._global_step and not progress.is_last_batch:
            return  # the gradient accumulates
        self._global_step = trainer.global_step
        self._data.position = batch.stream_end
        self._data.num_done = 0 if progress.is_last_batch else progress.current.ready
        self._counters = trainer.fit_loop.state_dict()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._counters is not None:
            checkpoint["loops"]["fit_loop"] = self._counters
