"""The YAML files under configs/, and the experiments that they make."""

import functools
from pathlib import Path

import torch
import yaml
from cli_fixtures import every_dataset_is_there

from scalear.commands.run import ScalearCLI

ROOT = Path(__file__).parents[2]
STUDY = Path("configs/study.yaml")  # a list of experiments
CONFIGS = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml") if path != ROOT / STUDY)
GENERAL = [path for path in CONFIGS if path.parent == Path("configs")]  # overlays of more than one family
VARIANTS = [path for path in CONFIGS if path.parent.with_suffix(".yaml") in CONFIGS]  # overlays of the file so named
FAMILIES = [path for path in CONFIGS if path not in [*GENERAL, *VARIANTS]]


def files_of(path: Path) -> list[Path]:
    """What is given by -c, in order, to run a family's file or a variant."""
    return [path.parent.with_suffix(".yaml"), path] if path in VARIANTS else [path]


def name_of(path: Path) -> str:
    """Where its run lies under runs/, as in imagenet256/flowar-l."""
    return yaml.safe_load((ROOT / path).read_text())["trainer"]["default_root_dir"].removeprefix("runs/")


EXPERIMENTS = {name_of(path): files_of(path) for path in [*FAMILIES, *VARIANTS]}


class Parsed(ScalearCLI):
    """The command line, read and checked but not carried out."""

    def parse_arguments(self, parser, args: list[str]) -> None:
        with every_dataset_is_there():
            super().parse_arguments(parser, args)

    def instantiate_classes(self) -> None: ...

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@functools.cache
def parsed(*args: str) -> Parsed:
    """Tests share what they read: a config takes half a second."""
    return Parsed(list(args))


def arguments(name: str) -> list[str]:
    """The experiment's files, for any command."""
    return [arg for path in EXPERIMENTS[name] for arg in ("-c", str(ROOT / path))]


@functools.cache
def on_meta(name: str):
    """Config, model and data of an experiment, all tensors on the meta device."""
    cli = parsed("fit", *arguments(name))
    with torch.device("meta"):
        built = cli.parser.instantiate_classes(cli.config)["fit"]
    return cli.config["fit"], built.model, built.data
