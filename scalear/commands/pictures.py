"""`scalear pictures`: what a generator of any scale can do, in two pictures."""

from scalear.commands.running.trained import Trained
from scalear.tasks.pictures import PictureRequest, draw_pictures


def run(args: list[str]) -> None:
    """Carry out `scalear pictures ...`.

    Args:
        args: The command line, from the command's name on.
    """
    trained = Trained(args[1:], "pictures", PictureRequest)
    request, report = trained.request, trained.module.report
    if request.image_dir is None and report is not None:
        request.image_dir = report.data_dir
    draw_pictures(request, trained.editor())
