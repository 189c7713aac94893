"""The commands behind `scalear`: LightningCLI for runs, plain functions for datasets."""

import re
import warnings
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from scalear import part_names  # noqa: F401
from scalear.benchmark.subject import Subject
from scalear.data.pack import pack
from scalear.data.verify import stats, verify
from scalear.files import check_free
from scalear.hardware.precision import AUTO, Precision, fastest
from scalear.interop.hub.export import Format, export_model
from scalear.tasks.command import EDITS, edit_file
from scalear.tasks.editing import Editor
from scalear.tasks.showcase import PictureRequest, draw_pictures
from scalear.training.checkpoints import AtomicCheckpointIO, check_checkpoint, load_weights
from scalear.training.generator.module import GeneratorModule
from scalear.training.interruption import SaveOnInterrupt
from scalear.training.performance import Performance
from scalear.training.run_precision import RecordPrecision, RunTrainer, resolve_precision
from scalear.training.tokenizer.module import TokenizerModule

_VERSIONS = [f"{name}=={version(name)}" for name in ("scalear", "torch", "lightning", "torchmetrics", "webdataset")]


set_parsing_settings(docstring_parse_attribute_docstrings=True)  # help of dataclass fields


# What Lightning says of things that are as they should be here.
for _expected in (
    ".*module.s. in eval mode at the start of training",  # the frozen tokenizer
    "You are using a custom batch sampler",
    "predict returned None",
    "Precision .* is not supported by the model summary",
    "`isinstance.treespec, LeafSpec.` is deprecated",
):
    warnings.filterwarnings("ignore", _expected)


class SaveStageConfig(SaveConfigCallback):
    """Leaves the resolved config and versions of each stage next to what it made, and in TensorBoard.

    The files are fit.yaml, validate.yaml, test.yaml and predict.yaml.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.config_filename = f"{trainer.state.fn.value}.yaml"
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called on rank 0."""
        text = "\n".join(_VERSIONS) + "\n\n" + self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"config/{trainer.state.fn.value}", f"```\n{text}\n```")


class TypedNull:
    """Of a parser: a typed `null` stays one, however deep its option lies.

    jsonargparse hands options down to the classes they belong to as text, in which null has become `None`.
    """

    def parse_args(self, args: Sequence[str], **kwargs: object) -> Namespace:
        return super().parse_args([re.sub(r"^(--[\w.]+=)None$", r"\1null", arg) for arg in args], **kwargs)


class RunParser(TypedNull, LightningArgumentParser):
    """Options of `scalear {fit,validate,test,predict}`."""


class CommandParser(TypedNull, ArgumentParser):
    """Options of `scalear data`, `scalear edit` and `scalear pictures`."""


class ScalearCLI(LightningCLI):
    """LightningCLI with one folder per run, `trainer.default_root_dir`: checkpoints/, events, configs, results.

    What the user typed wins: nothing but weights and training state is read from a checkpoint.
    """

    def __init__(self, args: list[str], run: bool = True, prog: str = "scalear") -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveStageConfig,
            save_config_kwargs={"overwrite": True},
            trainer_class=RunTrainer,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                # The datamodule splits its stream over ranks itself, and each epoch has an order of its own.
                "use_distributed_sampler": False,
                "reload_dataloaders_every_n_epochs": 1,
                "default_root_dir": "runs/default",
                "callbacks": [
                    Performance(),
                    RecordPrecision(),
                    SaveOnInterrupt(),
                    LearningRateMonitor("step"),
                    TQDMProgressBar(refresh_rate=10),
                ],
            },
            args=args,
            run=run,
            parser_class=RunParser,
            parser_kwargs={"prog": prog, "exit_on_error": False},
        )

    def init_parser(self, **kwargs: object) -> LightningArgumentParser:
        return super().init_parser(**{**kwargs, "dump_header": _VERSIONS})

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Without LightningCLI's warning that `args` are given: they always are."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """`trainer.precision: auto` becomes the one that is taken here, and is recorded like anything typed."""
        resumed = self._get(self.config, "ckpt_path") if self.subcommand == "fit" else None
        trainer = self._get(self.config, "trainer")
        trainer.precision, why = resolve_precision(trainer.precision, trainer.accelerator, resumed)
        if why:
            rank_zero_info(why)
            self._parser(self.subcommand).dump_header = [*_VERSIONS, why]

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config.get("logger") is None:
            kwargs["logger"] = TensorBoardLogger(config["default_root_dir"], name="", version="")
        if config.get("plugins") is None:
            kwargs["plugins"] = AtomicCheckpointIO()
        return super().instantiate_trainer(**kwargs)

    def test(self, **kwargs: object) -> None:
        """Generators choose what to sample themselves: they are not fed from the dataset."""
        self._run_on_own_data("test", kwargs)

    def predict(self, **kwargs: object) -> None:
        """As `test`; and nothing is returned, so that no image stays in memory."""
        self._run_on_own_data("predict", {**kwargs, "return_predictions": False})

    def after_instantiate_classes(self) -> None:
        path = self._get(self.config_init, "ckpt_path")
        if path is not None:
            check_checkpoint(path, self.model)
            if isinstance(self.model, GeneratorModule):
                self.model.weights = None  # the checkpoint holds all of them
        elif self.subcommand != "fit" and not self._has_weights():
            raise ValueError(f"scalear {self.subcommand} needs trained weights: give --ckpt_path")

    def _has_weights(self) -> bool:
        """Whether the model reads its weights from a file of its own, so that it needs no checkpoint."""
        if isinstance(self.model, TokenizerModule):
            return self.model.tokenizer.has_weights
        return not isinstance(self.model, GeneratorModule) or self.model.weights is not None

    def _run_on_own_data(self, name: str, kwargs: dict) -> None:
        if isinstance(self.model, GeneratorModule):
            kwargs.pop("datamodule", None)
        getattr(self.trainer, name)(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """LightningCLI would let the checkpoint's hyperparameters override what was typed."""


_CKPT_HELP = "Checkpoint of the run; not needed where model.weights names a converted model."


class _PartsOnly(ScalearCLI):
    """Builds model and data of a config, and no trainer."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def build_subject(args: list[str], device: torch.device) -> Subject:
    """The parts of a config for `scalear benchmark`, with random weights."""
    typed = any(re.match(r"--trainer\.precision\b", arg) for arg in args)
    config = _PartsOnly(["fit", *args]).config_init["fit"]
    precision = config.trainer.precision if typed else AUTO
    return Subject(config.model, config.data, fastest(device) if precision == AUTO else precision, device)


class ExportCLI(_PartsOnly):
    """`scalear export`: reads the config of a run as `predict` does."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, run=False, prog="scalear export")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, help=_CKPT_HELP)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder to make.")
        parser.add_argument("--format", type=Format, default="scalear", help="Whose from_pretrained will read it.")
        parser.add_argument("--force", type=bool, default=False, help="Replace a model that is there.")
        for name in ("weights_only", "return_predictions", "verbose"):  # as fit.yaml, predict.yaml and test.yaml have
            parser.add_argument(f"--{name}", type=bool | None, default=None, help=SUPPRESS)

    def export(self) -> None:
        """Write the folder."""
        config = self.config_init
        if not isinstance(config.model, GeneratorModule):
            raise ValueError(
                f"scalear export takes generators; a {type(config.model).__name__} leaves its own weights file"
            )
        class_names = config.data.index.class_names if Path(config.data.data_dir).is_dir() else None
        if not class_names:
            print(f"No class names: {config.data.data_dir} has none, or is not here")
        self._dump_config()
        check_free(config.output_dir, config.force)
        module = config.model
        load_weights(module, config.ckpt_path)
        export_model(
            module.model,
            self.config_dump["model"]["init_args"],
            module.samples.schedule(module.model.schedule),
            config.output_dir,
            class_names or None,
            config.format,
            config.force,
        )
        print(f"Wrote {config.output_dir}")


def run_export(args: list[str]) -> None:
    """Carry out `scalear export ...`."""
    ExportCLI(args).export()


def edit_parser() -> ArgumentParser:
    """`scalear edit {inpaint,outpaint,refine,extend}`."""
    parser = CommandParser(prog="scalear edit", description="Edit an image with FlexVAR.", exit_on_error=False)
    commands = parser.add_subcommands()
    for name, request_type in EDITS.items():
        command = _with_generator(CommandParser(description=request_type.__doc__), request_type)
        commands.add_subcommand(name, command, help=request_type.__doc__)
    return parser


def run_edit(args: list[str]) -> None:
    """Carry out `scalear edit ...`."""
    parser = edit_parser()
    config = parser.instantiate_classes(parser.parse_args(args))
    options = config[config.subcommand]
    request = _request(EDITS[config.subcommand], options)
    editor = _editor(options, request.threshold)
    with editor.model.autocast(options.precision):
        edit_file(request, editor)


def run_pictures(args: list[str]) -> None:
    """Carry out `scalear pictures ...`."""
    parser = CommandParser(prog="scalear pictures", description=PictureRequest.__doc__, exit_on_error=False)
    options = parser.instantiate_classes(_with_generator(parser, PictureRequest).parse_args(args))
    request, report = _request(PictureRequest, options), getattr(options.model, "report", None)
    if request.image_dir is None and report is not None:
        request.image_dir = report.data_dir
    editor = _editor(options)
    with editor.model.autocast(options.precision):
        draw_pictures(request, editor)


def _with_generator(parser: ArgumentParser, request_type: type) -> ArgumentParser:
    """Add the options of a request, and a config of `scalear fit`, of which the model alone is built."""
    switch = {"paste"} & {field.name for field in fields(request_type)}
    parser.add_class_arguments(request_type, skip=switch)
    if switch:
        parser.add_argument("--paste", action="store_true", help="Put the known pixels themselves into the result.")
    parser.add_argument("-c", "--config", action="config", help="Config of the run, or fit.yaml in its folder.")
    parser.add_argument("--ckpt_path", type=str | None, help=_CKPT_HELP)
    parser.add_argument(
        "--precision", type=Precision, default=AUTO, help="Of matrix products; `auto` is the fastest here."
    )
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    for name in ("data", "trainer", "seed_everything", "weights_only", "verbose", "return_predictions"):
        parser.add_argument(f"--{name}", type=dict | int | bool | None, help=SUPPRESS)
    return parser


def _request(request_type: type, options: Namespace) -> Any:
    return request_type(**{field.name: options[field.name] for field in fields(request_type)})


def _editor(options: Namespace, threshold: float = 0.5) -> Editor:
    """The generator of a run with its trained weights, on an accelerator if there is one."""
    module = options.model
    if not isinstance(module, GeneratorModule):
        raise ValueError(f"a {type(module).__name__} generates nothing: take the config of a generator")
    editor = Editor(module.model, threshold)
    load_weights(module, options.ckpt_path)
    module.to(torch.accelerator.current_accelerator(check_available=True) or "cpu").eval()
    return editor


_DATA_COMMANDS = (pack, verify, stats)


def data_parser() -> CommandParser:
    """`scalear data {pack,verify,stats}`: the functions' signatures and docstrings as options and help."""
    description = "Make, check and describe datasets of tar shards."
    parser = CommandParser(prog="scalear data", description=description, exit_on_error=False)
    commands = parser.add_subcommands()
    for function in _DATA_COMMANDS:
        command = CommandParser(description=function.__doc__.split("\n\n")[0])
        command.add_argument("--config", action="config", help="YAML file with the arguments below.")
        positional = function is not pack
        command.add_function_arguments(function, as_positional=positional)
        commands.add_subcommand(function.__name__, command, help=function.__doc__.splitlines()[0])
    return parser


def run_data(args: list[str]) -> None:
    """Carry out `scalear data ...`."""
    parser = data_parser()
    config = parser.parse_args(args)
    chosen = parser.instantiate_classes(config)[config.subcommand]
    chosen.pop("config", None)
    {function.__name__: function for function in _DATA_COMMANDS}[config.subcommand](**chosen)
