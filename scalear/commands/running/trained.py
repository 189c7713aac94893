"""The generator of a run and its trained weights, as the commands take them that need no Trainer."""

from dataclasses import fields
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningArgumentParser

from scalear.commands.run import PartsOnly
from scalear.commands.typed.parser import summary
from scalear.data.index import DatasetIndex
from scalear.hardware.machine import best_device
from scalear.tasks.editing import Editor
from scalear.training.checkpoints import load_weights
from scalear.training.generator.module import GeneratorModule
from scalear.training.named_checkpoints import named_checkpoint


class Trained(PartsOnly):
    """A request, and the generator of a config to carry it out with.

    Args:
        args: What follows the name of the command.
        prog: That name, after `scalear`.
        request_type: A dataclass: its fields are options of the command. It refuses what cannot be done before
            anything is built.
        more_help: What the help says beside the first paragraph of the request's docstring.

    Attributes:
        request: Of this type.
        module: The generator, with weights as in a new run until `load` was called.
        weights: File that `load` took its weights from.

    Raises:
        ValueError: The config describes something else.
    """

    def __init__(self, args: list[str], prog: str, request_type: type, more_help: str = "") -> None:
        self._request_type = request_type
        super().__init__(args, prog=f"scalear {prog}", description=f"{summary(request_type)} {more_help}")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(self._request_type)
        what = "Checkpoint of the run, or last, or best; not needed where model.weights names a converted model."
        parser.add_argument("--ckpt_path", type=str | None, help=what)
        trusts = "False reads also a checkpoint that holds more than tensors and plain values: if you trust its source."
        parser.add_argument("--weights_only", type=bool | None, help=trusts)
        super().add_arguments_to_parser(parser)

    def before_instantiate_classes(self) -> None:
        given = {field.name: self.config[field.name] for field in fields(self._request_type)}
        self.request = self._request_type(**given)

    def after_instantiate_classes(self) -> None:
        self.module = self.config_init.model
        if not isinstance(self.module, GeneratorModule):
            raise ValueError(
                f"{self.parser.prog} takes generators, and a {type(self.module).__name__} generates nothing: take the "
                "config of a generator"
            )

    def load(self, device: torch.device | str = "cpu") -> None:
        """Give the generator its trained weights, in evaluation mode.

        Raises:
            ValueError: There are none, or they are of another model.
        """
        weights_only = self.config.weights_only is not False
        path = named_checkpoint(self.config.ckpt_path, self.config.trainer, self.parser.prog, weights_only)
        load_weights(self.module, path, weights_only)
        self.weights = path or self.module.weights
        self.module.to(device).eval()

    def class_names(self) -> list[str] | None:
        """As the dataset of the config has them; None where it has none, or is not here."""
        folder = self.config_init.data.data_dir
        return (DatasetIndex.load(folder).class_names or None) if Path(folder).is_dir() else None

    def editor(self, threshold: float = Editor.threshold) -> Editor:
        """The generator as an editor, on an accelerator if there is one.

        Raises:
            ValueError: It cannot edit, or as `load`.
        """
        editor = Editor(self.module.model, threshold)
        self.load(best_device())
        return editor
