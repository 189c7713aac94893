"""A trained generator, taken out of its run: `scalear export`."""

from dataclasses import asdict
from typing import Any, Literal

import torch

from scalear.class_paths import settings_part
from scalear.files import atomic_folder
from scalear.image_model import ImageModel
from scalear.interop.hub.pretrained import ScaleARModel
from scalear.scales import ScaleSchedule

Format = Literal["scalear", "diffusers"]

_IMAGE_MODEL = f"{ImageModel.__module__}.{ImageModel.__qualname__}"


def export_model(
    model: ImageModel,
    parts: dict[str, Any],
    schedule: ScaleSchedule,
    output_dir: str,
    class_names: list[str] | None,
    format: Format,
    force: bool,
) -> None:
    """Write a model with its weights, and how it samples.

    Args:
        model: With the weights to write.
        parts: What it was built from, as in a config.
        schedule: The scales to sample.
        output_dir: Folder to make.
        class_names: Name of each label.
        format: `scalear` for a `ScaleARModel`, `diffusers` for a `ScaleARPipeline`.
        force: Replace a model that is there.

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
        part = {"class_path": _IMAGE_MODEL, "init_args": given}
        exported = ScaleARModel(part, str(schedule), class_names, parts["fast"])
    exported.model = model
    if format == "scalear":
        exported.save_pretrained(output_dir, force=force)
    else:
        from scalear.interop.hub.diffusers import ScaleARPipeline  # here, for it takes long to import

        with atomic_folder(output_dir, force) as partial:
            ScaleARPipeline.from_model(exported).save_pretrained(partial)
