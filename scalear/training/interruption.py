"""The end of a run, which may come early, by a signal or by an error: no finished step is lost."""

import signal
import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from scalear.training.checkpoints import checkpoint_folders, save_last_steps
from scalear.training.ema import averaged
from scalear.training.guarded_module import GuardedModule, NonFiniteLossError

INTERRUPTED = "interrupted.ckpt"
# SIGUSR1 is what clusters announce the end of a job with, SIGHUP comes when a terminal is closed; Windows has neither.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
_PATIENCE = 10.0  # seconds in which a repeated signal is still the first


class SaveOnInterrupt(Checkpoint):
    """Ctrl-C (SIGINT), SIGTERM, SIGUSR1 and SIGHUP finish the step at hand, and end the run with code 130.

    They leave a checkpoint, and what the module exports at the end of training. An error in training leaves a
    checkpoint of the last good step. However else training ends, callbacks that keep `last.ckpt` have the last step in
    it. Where nothing is trained, they end the command at once.

    It is a `Checkpoint` so that Lightning runs it after all other callbacks: the loader's position and the
    average are those of the finished step.
    """

    def __init__(self) -> None:
        self._stop_since: float | None = None
        self._previous: dict[int, object] = {}
        self._first_step: int | None = None  # None before training
        self._is_training = False

    def on_validation_start(self, trainer, pl_module) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:  # and not within `fit`
            self._be_ended()

    def on_test_start(self, trainer, pl_module) -> None:
        self._be_ended()

    def on_predict_start(self, trainer, pl_module) -> None:
        self._be_ended()

    def _be_ended(self) -> None:
        """By SIGTERM, of which Lightning takes note and heeds the note in training alone."""
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame) -> None:
        raise SystemExit(130)

    def on_sanity_check_start(self, trainer, pl_module) -> None:
        self._listen()

    def on_train_start(self, trainer, pl_module) -> None:
        self._listen()
        self._first_step, self._is_training = trainer.global_step, True

    def _listen(self) -> None:
        for number in _SIGNALS:
            there, name = signal.getsignal(number), signal.Signals(number).name
            if number in self._previous or (name == "SIGHUP" and there is signal.SIG_IGN):  # nohup
                continue
            if name == "SIGUSR1" and there is not signal.SIG_DFL:
                continue  # Lightning saves and requeues the job (SLURMEnvironment with auto_requeue)
            self._previous[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame) -> None:
        if self._first_step is None:
            rank_zero_info("\nStopped before the first step: there is nothing to save")
            raise SystemExit(130)
        # Launchers repeat the signal at once; a user who repeats it later does not want to wait for the step.
        if self._stop_since is None:
            self._stop_since = time.monotonic()
        elif time.monotonic() - self._stop_since > _PATIENCE:
            self._restore()
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.strategy.reduce_boolean_decision(self._stop_since is not None, all=False):
            self._stop(trainer, pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        # Several ranks cannot agree here, for they may have other numbers of batches.
        if self._stop_since is not None and self._is_training and trainer.world_size == 1:
            self._stop(trainer, pl_module)

    def _stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, INTERRUPTED)
        if isinstance(pl_module, GuardedModule) and not trainer.fast_dev_run:
            with averaged(trainer, pl_module):
                pl_module.export()
        raise SystemExit(130)  # not KeyboardInterrupt, at which Lightning would kill the other ranks

    def on_train_end(self, trainer, pl_module) -> None:
        self._is_training = False
        save_last_steps(trainer)

    def teardown(self, trainer, pl_module, stage: str) -> None:
        self._restore()
        if self._stop_since is not None:  # while what had been trained was exported: whatever follows was not wanted
            raise SystemExit(130)

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._restore()
        # Of several ranks one may fail alone, and the others would not save with it.
        together = isinstance(exception, NonFiniteLossError) or trainer.world_size == 1
        if not (self._is_training and together and isinstance(exception, Exception)):
            return
        if trainer.global_step > self._first_step:
            try:
                self._save(trainer, "last_good.ckpt")
            except OSError as error:  # as the exception may be: it is the one to be told
                rank_zero_info(f"\n{error}")

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.fast_dev_run:
            return
        checkpoint = checkpoint_folders(trainer)[0] / name
        trainer.save_checkpoint(checkpoint, weights_only=False)
        rank_zero_info(f"\nStopped after step {trainer.global_step}. Resume with: --ckpt_path {checkpoint}")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
