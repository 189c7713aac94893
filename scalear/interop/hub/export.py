"""A trained generator, taken out of its run: `scalear export`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from scalear.class_paths import class_path, settings_part
from scalear.files import atomic_folder, check_new_folder
from scalear.image_model import ImageModel
from scalear.interop.hub.pretrained import ScaleARModel
from scalear.scales import ScaleSchedule


@dataclass(kw_only=True)
class ExportRequest:
    """Take a trained generator out of its run, as a folder to share.

    Raises:
        ValueError: Something is at `output_dir`.
    """

    output_dir: str
    """Folder to make."""
    format: Literal["scalear", "diffusers"] = "scalear"
    """Whose from_pretrained will read it: `ScaleARModel`'s, or `ScaleARPipeline`'s."""
    force: bool = False
    """Replace a model that is there."""

    def __post_init__(self) -> None:
        check_new_folder(self.output_dir, self.force)


def export_model(
    request: ExportRequest,
    model: ImageModel,
    parts: dict[str, Any],
    schedule: ScaleSchedule,
    class_names: list[str] | None,
) -> None:
    """Write a model with its weights, and how it samples.

    Args:
        request: Where, and for whom.
        model: With the weights to write.
        parts: What it was built from, as in a config.
        schedule: The scales to sample.
        class_names: Name of each label.

    Raises:
        ValueError: Something else is at `output_dir`.
    """
    given = {name: parts[name] for name in ("pyramid", "transformer", "head", "label_drop_prob")}
    tokenizer = parts["tokenizer"]
    replaced = model.tokenizer.weight_arguments  # by the exported weights
    kept = {name: value for name, value in tokenizer["init_args"].items() if name not in replaced}
    given["tokenizer"] = {"class_path": tokenizer["class_path"], "init_args": kept}
    given |= {"sampling": settings_part(model.sampling), "guidance": asdict(model.guidance)}
    # Built on the meta device, and then given the modules that hold the weights already.
    with torch.device("meta"):
        part = {"class_path": class_path(ImageModel), "init_args": given}
        exported = ScaleARModel(part, str(schedule), class_names, parts["fast"])
    exported.model = model
    if request.format == "scalear":
        exported.save_pretrained(request.output_dir, force=request.force)
    else:
        from scalear.interop.hub.diffusers import ScaleARPipeline  # here, for it takes long to import

        with atomic_folder(request.output_dir, request.force) as partial:
            ScaleARPipeline.from_model(exported).save_pretrained(partial)
