"""`scalear edit`: in-paint, out-paint, refine or extend an image."""

from scalear.commands.parser import CommandParser, add_ignored
from scalear.commands.trained import add_request, editor_of, request_of
from scalear.tasks.edit_requests import EDITS, edit_file


def run(args: list[str]) -> None:
    """Carry out `scalear edit ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = CommandParser(prog="scalear edit", description="Edit an image with FlexVAR.")
    edits = parser.add_subcommands()
    for name, request_type in EDITS.items():
        command = add_request(CommandParser(description=request_type.__doc__), request_type)
        add_ignored(command, "force")
        edits.add_subcommand(name, command, help=request_type.__doc__)
    config = parser.instantiate_classes(parser.parse_args(args[1:]))
    options = config[config.subcommand]
    request = request_of(EDITS[config.subcommand], options)
    editor = editor_of(options, request.threshold)
    with editor.model.autocast(options.precision):
        edit_file(request, editor)
