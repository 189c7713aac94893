"""The end of a run, which may come early, by a signal or by numbers that are not finite: no finished step is lost."""

import signal
import time
from pathlib import Path

from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from scalear.training.checkpoints import save_last_step
from scalear.training.guarded_module import NonFiniteLossError

# SIGUSR1 is what clusters announce the end of a job with; Windows has none.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_PATIENCE = 10.0  # seconds in which a repeated signal is still the first


class SaveOnInterrupt(Checkpoint):
    """Ctrl-C (SIGINT), SIGTERM and SIGUSR1 finish the step at hand, save a checkpoint, and end the run with code 130.

    A loss or gradient that is not finite leaves a checkpoint of the last good step. However else training ends,
    callbacks that keep `last.ckpt` have the last step in it.

    It is a `Checkpoint` so that Lightning runs it after all other callbacks: the loader's position and the
    average are those of the finished step.
    """

    def __init__(self) -> None:
        self._stop_since: float | None = None
        self._previous: dict[int, object] = {}

    def on_train_start(self, trainer, pl_module) -> None:
        for number in _SIGNALS:
            if number == getattr(signal, "SIGUSR1", None) and signal.getsignal(number) is not signal.SIG_DFL:
                continue  # Lightning saves and requeues the job (SLURMEnvironment with auto_requeue)
            self._previous[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame) -> None:
        # Launchers repeat the signal at once; a user who repeats it later does not want to wait for the step.
        if self._stop_since is None:
            self._stop_since = time.monotonic()
        elif time.monotonic() - self._stop_since > _PATIENCE:
            self._restore()
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self._stop_since is not None, all=False)
        if stop:
            self._save(trainer, "interrupted.ckpt")
            raise SystemExit(130)  # not KeyboardInterrupt, at which Lightning would kill the other ranks

    def on_train_end(self, trainer, pl_module) -> None:
        self._restore()
        # Epochs, time and early stopping end a run at steps that no callback could foresee.
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                save_last_step(callback, trainer)

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._restore()
        if isinstance(exception, NonFiniteLossError):
            self._save(trainer, "last_good.ckpt")

    def _save(self, trainer, name: str) -> None:
        if trainer.fast_dev_run:
            return
        checkpoint = checkpoint_folder(trainer) / name
        trainer.save_checkpoint(checkpoint)
        rank_zero_info(f"\nStopped after step {trainer.global_step}. Resume with: --ckpt_path {checkpoint}")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def checkpoint_folder(trainer) -> Path:
    """Where this run keeps its checkpoints."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return Path(callback.dirpath)
    return Path(trainer.default_root_dir) / "checkpoints"
