"""`scalear app`: a page to play with a trained generator."""

import pydoc
from dataclasses import dataclass, fields
from pathlib import Path

from scalear.app.playground import Playground
from scalear.app.server import PageServer
from scalear.commands.running.trained import Trained
from scalear.commands.typed.parser import CommandParser, summary
from scalear.hardware.machine import best_device
from scalear.hardware.precision import AUTO, Precision
from scalear.image_model import ImageModel
from scalear.interop.hub.pretrained import CONFIG, ScaleARModel
from scalear.scales import ScaleSchedule
from scalear.training.generator.module import GeneratorModule
from scalear.yaml_files import read_yaml

_RECORD = "fit.yaml"
Opened = tuple[ImageModel, ScaleSchedule | None, list[str] | None]
"""A model with its weights, the scales to sample and the names of its classes."""


@dataclass(kw_only=True)
class AppRequest:
    """Open a page on this machine to play with a trained generator: make pictures, watch their scales, complete them.

    Raises:
        ValueError: There is no such folder, or no such port.
    """

    run: str
    """Folder of a generator's run, or of one that `scalear export` wrote; also one in which a single such run lies."""
    port: int = 7860
    """Of the page's address on this machine; 0 takes any that is free."""
    precision: Precision = AUTO
    """Of matrix products; `auto` is the fastest here."""

    def __post_init__(self) -> None:
        if not Path(self.run).is_dir():
            raise ValueError(f"there is no folder {self.run}: give the run of a generator, such as runs/demo/flowar")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"--port must be from 0 to {(1 << 16) - 1}, got {self.port}")


def run(args: list[str]) -> None:
    """Carry out `scalear app ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = CommandParser(prog="scalear app", description=f"{summary(AppRequest)} {_HELP}")
    parser.add_class_arguments(AppRequest)
    parser.add_argument("--ckpt_path", type=str, default="last", help="Checkpoint of the run, or last, or best.")
    own, others = parser.split(args[1:])
    options = parser.parse_args(own)
    request = AppRequest(**{field.name: options[field.name] for field in fields(AppRequest)})
    folder = _model_folder(Path(request.run))
    is_exported = (folder / CONFIG).is_file()
    typed = [*others, *(arg for arg in own if arg.startswith("--ckpt_path"))]
    if is_exported and typed:
        raise ValueError(f"{folder} is an exported model, with one set of weights and no config: leave out {typed[0]}")
    with PageServer(request.port) as server:  # a port that is taken is known before anything is loaded
        model, schedule, class_names = _exported(folder) if is_exported else _of_run(folder, args[1:])
        server.playground = Playground(model, schedule, class_names, request.run, request.precision)
        print(f"The page is at {server.address}, for this machine alone; Ctrl-C ends it", flush=True)
        server.serve()
    print("The page has ended")


_HELP = "Any other option is one of the run's config, as in --model.tokenizer.weights FILE."


def _model_folder(folder: Path) -> Path:
    """The folder itself if it holds a model, else the only one in it that does.

    Raises:
        ValueError: There is none, or there are several.
    """
    if (folder / CONFIG).is_file() or (folder / _RECORD).is_file():
        return folder
    found = [path.parent for path in sorted(folder.glob(f"*/{_RECORD}")) if _is_generator(path)]
    if not found:
        raise ValueError(
            f"{folder} holds neither {_RECORD} nor {CONFIG}, and no run of a generator: give a folder that "
            "`scalear fit` of a generator or `scalear export` left"
        )
    if len(found) > 1:
        raise ValueError(f"{folder} holds several generators, {', '.join(map(str, found))}: name one of them")
    return found[0]


def _is_generator(config: Path) -> bool:
    try:
        kind = pydoc.locate(read_yaml(config)["model"]["class_path"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{config} is no record of a run, for it names no class of its model: move it away") from error
    return isinstance(kind, type) and issubclass(kind, GeneratorModule)


def _of_run(folder: Path, args: list[str]) -> Opened:
    """The model of a run; its record is the config, and what is typed wins."""
    of_run = [f"--config={folder / _RECORD}", f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    trained = Trained([*of_run, *args], "app", AppRequest)
    trained.load(best_device())
    module = trained.module
    return module.model, module.samples.schedule(module.model.schedule), trained.class_names()


def _exported(folder: Path) -> Opened:
    found = ScaleARModel.from_pretrained(folder).to(best_device())
    return found.model, found.scales and ScaleSchedule.parse(found.scales), found.class_names
