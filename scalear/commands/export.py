"""`scalear export`: a trained generator out of its run, as a folder to share."""

from pathlib import Path

from scalear.commands.trained import Trained
from scalear.data.index import DatasetIndex
from scalear.interop.hub.export import ExportRequest, export_model


def run(args: list[str]) -> None:
    """Carry out `scalear export ...`.

    Args:
        args: The command line, from the command's name on.
    """
    trained = Trained(args[1:], "export", ExportRequest)
    module, data = trained.module, trained.config_init.data
    class_names = DatasetIndex.load(data.data_dir).class_names if Path(data.data_dir).is_dir() else None
    if not class_names:
        print(f"No class names: {data.data_dir} has none, or is not here")
    trained._dump_config()
    trained.load()
    parts, schedule = trained.config_dump["model"]["init_args"], module.samples.schedule(module.model.schedule)
    export_model(trained.request, module.model, parts, schedule, class_names or None)
    print(f"Wrote {trained.request.output_dir}")
