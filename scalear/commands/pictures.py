"""`scalear pictures`: what a generator of any scale can do, in two pictures."""

from pathlib import Path

from scalear.commands.parser import CommandParser
from scalear.commands.trained import add_request, editor_of, request_of
from scalear.tasks.pictures import PICTURE_NAMES, PictureRequest, draw_pictures


def run(args: list[str]) -> None:
    """Carry out `scalear pictures ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = add_request(CommandParser(prog="scalear pictures", description=PictureRequest.__doc__), PictureRequest)
    parser.add_argument("--force", type=bool, default=False, help="Replace pictures that are there.")
    options = parser.parse_args(args[1:])
    there = [path for path in (Path(options.output_dir, name) for name in PICTURE_NAMES) if path.exists()]
    if there and not options.force:
        raise ValueError(f"{there[0]} is there already: choose another --output_dir, or replace it with --force")
    options = parser.instantiate_classes(options)
    request, report = request_of(PictureRequest, options), getattr(options.model, "report", None)
    if request.image_dir is None and report is not None:
        request.image_dir = report.data_dir
    editor = editor_of(options)
    with editor.model.autocast(options.precision):
        draw_pictures(request, editor)
