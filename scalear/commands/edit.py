"""`scalear edit`: in-paint, out-paint, refine or extend an image."""

from scalear.commands.running.trained import Trained
from scalear.commands.typed.parser import CommandParser
from scalear.tasks.edit_requests import EDITS, edit_file


def run(args: list[str]) -> None:
    """Carry out `scalear edit ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = CommandParser(prog="scalear edit", description="Edit an image with FlexVAR.")
    edits = parser.add_subcommands()
    for name, request_type in EDITS.items():
        edits.add_subcommand(name, CommandParser(), help=request_type.__doc__)
    name = parser.parse_args(args[1:2]).subcommand
    trained = Trained(args[2:], f"edit {name}", EDITS[name])
    edit_file(trained.request, trained.editor(trained.request.threshold))
