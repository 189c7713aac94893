"""The generator of a run and its trained weights, as the commands take them that need no Trainer."""

from dataclasses import fields
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule

from scalear.commands import part_names  # noqa: F401  (which may stand in the config)
from scalear.commands.parser import CommandParser, add_checkpoint, add_ignored
from scalear.hardware.machine import best_device
from scalear.hardware.precision import AUTO, Precision
from scalear.tasks.editing import Editor
from scalear.training.checkpoints import load_weights
from scalear.training.generator.module import GeneratorModule
from scalear.training.named_checkpoints import named_checkpoint


def add_request(parser: CommandParser, request_type: type) -> CommandParser:
    """Add the options of a request, and a config of `scalear fit`, of which the model alone is built.

    Args:
        parser: Of a command.
        request_type: A dataclass; its fields become options.
    """
    parser.add_class_arguments(request_type)
    parser.add_argument("-c", "--config", action="config", help="Config of the run, or fit.yaml in its folder.")
    add_checkpoint(parser)
    parser.add_argument(
        "--precision", type=Precision, default=AUTO, help="Of matrix products; `auto` is the fastest here."
    )
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    add_ignored(parser, "data", "trainer", "seed_everything", "weights_only", "verbose", "return_predictions")
    return parser


def request_of(request_type: type, options: Namespace) -> Any:
    """The request that was typed.

    Args:
        request_type: As it was added to the parser.
        options: What the parser made of the command line.
    """
    return request_type(**{field.name: options[field.name] for field in fields(request_type)})


def editor_of(options: Namespace, threshold: float = 0.5) -> Editor:
    """The generator of a run with its trained weights, on an accelerator if there is one.

    Args:
        options: What the parser made of the command line.
        threshold: See `Editor`.

    Raises:
        ValueError: The config is not a generator's, this one cannot edit, or there are no trained weights.
    """
    module = options.model
    if not isinstance(module, GeneratorModule):
        raise ValueError(f"a {type(module).__name__} generates nothing: take the config of a generator")
    editor = Editor(module.model, threshold)
    run = {"default_root_dir": "runs/default"} | (options.trainer or {})
    load_weights(module, named_checkpoint(options.ckpt_path, run, "this command"))
    module.to(best_device()).eval()
    return editor
