"""`scalear board`: TensorBoard on the folders of runs."""

from pathlib import Path
from typing import Any

from tensorboard import default, program
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

from scalear.commands.typed.parser import function_parser


def board(logdir: str = "runs", host: str = "localhost", port: int | None = None) -> None:
    """Show runs in a browser: charts, pictures over time, and a table that compares them. Ctrl-C ends it.

    Args:
        logdir: Folder of runs, however deep they lie in it.
        host: Address to serve at; 0.0.0.0 lets other machines see the runs, too.
        port: By default the first that is free from 6006 on.

    Raises:
        ValueError: There is no such folder.
    """
    if not Path(logdir).is_dir():
        raise ValueError(f"there is no folder {logdir}: train first, or give --logdir")
    if tensorboard(logdir, host=host, port=port).main():
        raise ValueError(f"TensorBoard cannot serve at {host}, port {port or '6006 and above'}: choose another --port")


def tensorboard(logdir: str | Path, **flags: Any) -> program.TensorBoard:
    """TensorBoard, its page open on what `scalear fit` has laid out, if there is that.

    Args:
        logdir: Folder of runs.
        **flags: Of TensorBoard.
    """
    # The page opens on the first of these that has something to show.
    plugins = sorted(default.get_plugins(), key=lambda plugin: plugin is not CustomScalarsPlugin)
    made = program.TensorBoard(plugins)
    # Of the pictures of a run it would keep ten, by chance.
    made.configure(("tensorboard",), logdir=str(logdir), samples_per_plugin={"images": 100}, **flags)
    return made


def run(args: list[str]) -> None:
    """Carry out `scalear board ...`.

    Args:
        args: The command line, from the command's name on.
    """
    board(**function_parser(board, "scalear board").parse_args(args[1:]))
