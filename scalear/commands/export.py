"""`scalear export`: a trained generator out of its run, as a folder to share."""

from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from scalear.commands.parser import add_checkpoint, add_ignored
from scalear.commands.run import PartsOnly
from scalear.files import check_free
from scalear.interop.hub.export import Format, export_model
from scalear.training.checkpoints import load_weights
from scalear.training.generator.module import GeneratorModule
from scalear.training.named_checkpoints import named_checkpoint


class ExportCLI(PartsOnly):
    """`scalear export`: reads the config of a run as `predict` does."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, run=False, prog="scalear export")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_checkpoint(parser)
        parser.add_argument("--output_dir", type=str, required=True, help="Folder to make.")
        parser.add_argument("--format", type=Format, default="scalear", help="Whose from_pretrained will read it.")
        parser.add_argument("--force", type=bool, default=False, help="Replace a model that is there.")
        add_ignored(parser, "weights_only", "return_predictions", "verbose")  # of fit.yaml, predict.yaml, test.yaml

    def export(self) -> None:
        """Write the folder."""
        config, module = self.config_init, self.config_init.model
        if not isinstance(module, GeneratorModule):
            raise ValueError(f"scalear export takes generators; a {type(module).__name__} leaves its own weights file")
        class_names = config.data.index.class_names if Path(config.data.data_dir).is_dir() else None
        if not class_names:
            print(f"No class names: {config.data.data_dir} has none, or is not here")
        self._dump_config()
        check_free(config.output_dir, config.force)
        load_weights(module, named_checkpoint(config.ckpt_path, self.config.trainer, "export"))
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


def run(args: list[str]) -> None:
    """Carry out `scalear export ...`.

    Args:
        args: The command line, from the command's name on.
    """
    ExportCLI(args[1:]).export()
