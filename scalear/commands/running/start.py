"""Where a stage of a run begins to write: after all that may refuse it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from scalear.files import check_writable, claimed, write_bytes
from scalear.training.checkpoints import continues
from scalear.training.dashboard import show_charts, show_run
from scalear.training.guarded_module import GuardedModule
from scalear.training.loggers import log_config
from scalear.training.run_folder import by_dotted_names, record_line, remove_run
from scalear.training.tokenizer.export import BEST_NAME
from scalear.training.tokenizer.module import TokenizerModule
from scalear.yaml_files import parse_yaml


class StartOfRun(SaveConfigCallback):
    """Begins to write once a stage cannot be refused any more, then leaves its resolved config and versions.

    The setup of data, callbacks and module may refuse a stage, and so may what is in a checkpoint. Lightning would have
    opened the loggers by then. Here the folder is made and claimed and loggers open their files when all of that is
    over, before the first batch. The config is written beside what the stage makes (fit.yaml, validate.yaml, test.yaml
    or predict.yaml), and given to all loggers.

    Args:
        *args: As of `SaveConfigCallback`.
        claims: What is claimed is given back when this ends.
        versions: Of the packages that matter, one per line, for loggers.
        **kwargs: As of `SaveConfigCallback`.
    """

    def __init__(self, *args: Any, claims: ExitStack, versions: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._claims = claims
        self._versions = versions
        self._loggers: list[Logger] = []

    def hold_back(self, trainer: Trainer) -> None:
        """Come before all other callbacks, and keep the loggers until Lightning has passed where it opens them."""
        trainer.callbacks.remove(self)
        trainer.callbacks.insert(0, self)
        self._loggers, trainer.loggers = trainer.loggers, []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.loggers = self._loggers

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:  # and not within `fit`
            self._start(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder, stage = Path(trainer.default_root_dir), trainer.state.fn
        check_writable(folder)
        # Samples may be made by several jobs together; checkpoints, and shards of latents, would be of two runs.
        alone = stage == TrainerFn.FITTING or (stage == TrainerFn.PREDICTING and isinstance(pl_module, TokenizerModule))
        if alone:
            self._claim(trainer, folder / f".{stage.value}.lock", f"has begun to {stage.value} in {folder}")
        is_new = stage == TrainerFn.FITTING and not continues(trainer, trainer.ckpt_path)
        if is_new and self.config.force and trainer.is_global_zero:
            remove_run(trainer, [BEST_NAME] if isinstance(pl_module, TokenizerModule) else [])
        for logger in sorted(trainer.loggers, key=lambda logger: not isinstance(logger, WandbLogger)):
            getattr(logger, "experiment", None)  # opens it: W&B before TensorBoard, of which it copies what is logged
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, stage.value)

    def _claim(self, trainer: Trainer, lock: Path, what: str) -> None:
        """On rank 0; if that is refused, all ranks end with the same message, and none waits for another."""
        refusal = None
        if trainer.is_global_zero:
            try:
                self._claims.enter_context(claimed(lock, what))
            except (ValueError, OSError) as error:
                refusal = error
        if refusal := trainer.strategy.broadcast(refusal):
            raise refusal

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called on rank 0."""
        # Who reads this file as a config has not asked to replace anything.
        config = self.config.clone()
        config.force = False
        weights = self.config.get("ckpt_path") or self.config.model.init_args.get("weights")
        self.parser.dump_header = [*self.parser.dump_header, record_line(weights)]
        text = self.parser.dump(config, skip_none=False)
        write_bytes(Path(trainer.default_root_dir, f"{stage}.yaml"), text.encode())
        count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        settings = parse_yaml(text) | {"trainable_parameters": count}
        log_config(trainer.loggers, stage, settings, f"{self._versions}\n\n{text}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                show_run(logger, by_dotted_names(settings))
                if isinstance(pl_module, GuardedModule):
                    show_charts(logger, pl_module.charts)
