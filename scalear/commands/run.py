"""`scalear fit`, `validate`, `test` and `predict`: LightningCLI, with one folder per run."""

import warnings
from argparse import SUPPRESS
from contextlib import ExitStack
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from scalear.commands.running import part_names  # noqa: F401  (which may stand in configs)
from scalear.commands.running.config import parse_run
from scalear.commands.running.left_out import fill_in
from scalear.commands.running.start import StartOfRun
from scalear.commands.running.trainer import RunTrainer, trainer_arguments
from scalear.commands.typed.parser import AsTyped
from scalear.hardware.precision import AUTO
from scalear.training.checkpoints import check_checkpoint
from scalear.training.classifier_module import ClassifierModule
from scalear.training.generator.module import GeneratorModule
from scalear.training.named_checkpoints import named_checkpoint
from scalear.training.run_folder import check_new_run, check_results, result_origin, sample_origin
from scalear.training.run_precision import resolve_precision
from scalear.training.tokenizer.export import BEST_NAME, EXPORT_NAME
from scalear.training.tokenizer.module import TokenizerModule

register_type(torch.device)  # a setting of some of Lightning's callbacks, which the record of a run has to name

_VERSIONS = [f"{name}=={version(name)}" for name in ("scalear", "torch", "lightning", "torchmetrics", "webdataset")]

# What Lightning says of things that are as they should be here.
for _expected in (
    ".*module.s. in eval mode at the start of training",  # the frozen tokenizer
    "You are using a custom batch sampler",
    "predict returned None",
    "Precision .* is not supported by the model summary",
    "`isinstance.treespec, LeafSpec.` is deprecated",
    "Checkpoint directory .* exists and is not empty",  # of a run that goes on
):
    warnings.filterwarnings("ignore", _expected)


_IS_PARSING = ContextVar("_IS_PARSING", default=False)


class RunParser(AsTyped, LightningArgumentParser):
    """Options of `scalear {fit,validate,test,predict}`, and of commands that build the parts of a config.

    Checked once, as a whole, by `parse_run`: jsonargparse would check every part for every option that is typed, and
    again for every record, which takes longer than all else.
    """

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:
        """As typed, not checked yet; and what the config of a run leaves out, as its dataset has it."""
        token = _IS_PARSING.set(True)
        try:
            config = super().parse_args(*args, **kwargs | {"_skip_validation": True})
        finally:
            _IS_PARSING.reset(token)
        fill_in(config)
        return config

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """The whole, once all is parsed; before, a name that is unknown here tells that another class is meant."""
        known = {action.dest.partition(".")[0] for action in self._actions}
        if not _IS_PARSING.get() or not vars(namespace).keys() <= known:
            super().validate(namespace, *args, **kwargs)

    def parse_object(self, obj: Namespace | dict[str, Any], *args: Any, **kwargs: Any) -> Namespace:
        """A part, while parsing; to check the whole, jsonargparse would parse its parts once more."""
        if _IS_PARSING.get() or not isinstance(obj, Namespace):
            return super().parse_object(obj, *args, **kwargs)
        try:
            self.validate(obj)
        except (TypeError, KeyError) as error:
            self.error(str(error), error)
        return obj

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Of what has been checked."""
        return super().dump(*args, **kwargs | {"skip_validation": True})


class ScalearCLI(LightningCLI):
    """LightningCLI with one folder per run, `trainer.default_root_dir`: checkpoints/, events, configs, results.

    What the user typed wins: nothing but weights and training state is read from a checkpoint.

    Args:
        args: The command line, from the command's name on.
        run: Carry the command out; False reads a config only, and then no name comes first.
        parser: What the parser is made with: `prog`, the words before the options, and `description`.
    """

    def __init__(self, args: list[str], run: bool = True, **parser: str) -> None:
        self._command = args[0] if run else None
        self._claims = ExitStack()
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=StartOfRun,
            save_config_kwargs={"claims": self._claims, "versions": "\n".join(_VERSIONS)},
            trainer_class=RunTrainer,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                # The datamodule splits its stream over ranks itself, and each epoch has an order of its own.
                "use_distributed_sampler": False,
                "reload_dataloaders_every_n_epochs": 1,
                "default_root_dir": "runs/default",
            },
            args=args,
            run=run,
            parser_class=RunParser,
            parser_kwargs={"prog": "scalear", "exit_on_error": False} | parser,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """The one that is typed, for making the parser of each takes long."""
        every = LightningCLI.subcommands()
        return {self._command: every[self._command]} if self._command else {}

    def init_parser(self, **kwargs: object) -> LightningArgumentParser:
        return super().init_parser(**{**kwargs, "dump_header": _VERSIONS})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--force", type=bool, default=False, help="Replace a run or results that are there.")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """By the parser of the command alone: that of all commands would go through every part once more.

        It prints configs, though, when all that they leave out is found.
        """
        if self._command is None or any(arg.startswith("--print_config") for arg in args):
            self.config = parse_run(parser, args)
        else:
            of_command = parse_run(self._parser(self._command), args[1:])
            self.config = Namespace({"subcommand": self._command, self._command: of_command})

    def before_instantiate_classes(self) -> None:
        """Names and `auto` become what they mean here, and are recorded like anything typed.

        These are `last`, `best` and `hpc` of `ckpt_path`, and the precision.
        """
        config = self.config.get(str(self.subcommand), self.config)
        trainer = config.trainer
        if "ckpt_path" in config:
            weights_only = config.get("weights_only") is not False
            config.ckpt_path = named_checkpoint(config.ckpt_path, trainer, self.subcommand, weights_only)
        resumed = config.get("ckpt_path") if self.subcommand == "fit" else None
        self._precision_is_free = trainer.precision == AUTO
        trainer.precision, why = resolve_precision(trainer.precision, trainer.accelerator, resumed)
        if why:
            rank_zero_info(why)
            self._parser(self.subcommand).dump_header = [*_VERSIONS, why]

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        config = self._get(self.config_init, "trainer").as_dict()
        trainer = super().instantiate_trainer(**trainer_arguments(config, self._precision_is_free), **kwargs)
        for start in [callback for callback in trainer.callbacks if isinstance(callback, StartOfRun)]:
            start.hold_back(trainer)
        return trainer

    def test(self, **kwargs: object) -> None:
        """Generators choose what to sample themselves: they are not fed from the dataset."""
        self._run_on_own_data("test", kwargs)

    def predict(self, **kwargs: object) -> None:
        """As `test`; and nothing is returned, so that no image stays in memory."""
        self._run_on_own_data("predict", {**kwargs, "return_predictions": False})

    def after_instantiate_classes(self) -> None:
        path, is_fit = self._get(self.config_init, "ckpt_path"), self.subcommand == "fit"
        if path is not None:
            check_checkpoint(path, self.model, is_fit, self._get(self.config_init, "weights_only") is not False)
            self._take_all_weights_from(path)
        elif not is_fit and not self._has_weights():
            raise ValueError(f"scalear {self.subcommand} needs trained weights: give --ckpt_path")
        self._refuse_idleness()
        self._check_what_is_there(path)

    def _take_all_weights_from(self, path: str) -> None:
        """Leave out other files of weights, which training would begin from, and say so."""
        for name in ("weights", "begin_from"):
            if (other := getattr(self.model, name, None)) is not None:
                rank_zero_info(f"model.{name} {other} is not used: {path} holds all weights")
                setattr(self.model, name, None)
        if isinstance(self.model, TokenizerModule) and self.model.tokenizer.has_weights:
            rank_zero_info(f"the file of model.tokenizer is not used: {path} holds all weights")

    def _refuse_idleness(self) -> None:
        """Lightning would do nothing at all, and say nothing."""
        batches = {"fit": "train", "validate": "val"}.get(self.subcommand, self.subcommand)
        limits = [f"limit_{batches}_batches", *(["max_steps", "max_epochs"] if self.subcommand == "fit" else [])]
        for name in limits:
            if getattr(self.trainer, name) == 0:
                raise ValueError(f"trainer.{name} is 0, which leaves {self.subcommand} nothing to do")

    def _check_what_is_there(self, path: str | None) -> None:
        folder, force = self.trainer.default_root_dir, self._get(self.config_init, "force")
        if self.trainer.fast_dev_run:
            return
        if self.subcommand == "fit" and not force:
            names = (EXPORT_NAME, BEST_NAME) if isinstance(self.model, TokenizerModule) else ()
            exports = [Path(folder, name) for name in names]
            exports += [self.model.export_path] if isinstance(self.model, ClassifierModule) else []
            check_new_run(self.trainer, path, exports)
        elif self.subcommand in ("test", "predict"):
            self._dump_config()
            origin = result_origin(self.config_dump, path or getattr(self.model, "weights", None))
            if not force:
                check_results(self.subcommand, folder, origin)
            if isinstance(self.model, GeneratorModule):
                self.model.know_samples_by(sample_origin(origin), anew=force)

    def _has_weights(self) -> bool:
        """Whether the model reads its weights from a file of its own, so that it needs no checkpoint."""
        if isinstance(self.model, TokenizerModule):
            return self.model.tokenizer.has_weights
        return not isinstance(self.model, GeneratorModule) or self.model.weights is not None

    def _run_on_own_data(self, name: str, kwargs: dict) -> None:
        if isinstance(self.model, GeneratorModule):
            kwargs.pop("datamodule", None)
        getattr(self.trainer, name)(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        with self._claims:
            super()._run_subcommand(subcommand)

    def _parse_ckpt_path(self) -> None:
        """LightningCLI would let the checkpoint's hyperparameters override what was typed."""


class PartsOnly(ScalearCLI):
    """Model and data of a config as `fit` makes them, from the same seed, and no trainer.

    Args:
        args: Options as `fit` takes them.
        parser: As of `ScalearCLI`.
    """

    def __init__(self, args: list[str], **parser: str) -> None:
        super().__init__(args, run=False, **parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Lets configs have all that those of runs have; what there is no use for is not in the help."""
        for action in parser._actions:
            if action.dest.startswith("trainer"):
                action.help = SUPPRESS
        for name in ("ckpt_path", "force", "weights_only", "verbose", "return_predictions"):
            if f"--{name}" not in parser._option_string_actions:
                parser.add_argument(f"--{name}", type=str | bool | None, help=SUPPRESS)

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)

    def after_instantiate_classes(self) -> None: ...


def run(args: list[str]) -> None:
    """Carry out `scalear fit ...`, `validate`, `test` or `predict`.

    Args:
        args: The command line, from the command's name on.
    """
    ScalearCLI(args)
