"""`scalear export`: a trained generator out of its run, as a folder to share."""

from scalear.commands.running.trained import Trained
from scalear.interop.hub.export import ExportRequest, export_model


def run(args: list[str]) -> None:
    """Carry out `scalear export ...`.

    Args:
        args: The command line, from the command's name on.
    """
    trained = Trained(args[1:], "export", ExportRequest)
    module = trained.module
    class_names = trained.class_names()
    if class_names is None:
        print(f"No class names: {trained.config_init.data.data_dir} has none, or is not here")
    trained._dump_config()
    trained.load()
    parts, schedule = trained.config_dump["model"]["init_args"], module.samples.schedule(module.model.schedule)
    export_model(trained.request, module.model, parts, schedule, class_names)
    print(f"Wrote {trained.request.output_dir}")
