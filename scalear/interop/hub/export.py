"""A trained generator, taken out of its run: `scalear export`."""

from typing import Literal

import torch

from scalear.guidance import Guidance
from scalear.interop.class_paths import Part, settings_part
from scalear.interop.folder import new_folder
from scalear.interop.hub.pretrained import ScaleARModel
from scalear.models.generator import Generator
from scalear.scales import ScaleSchedule
from scalear.tokenizers.base import Tokenizer

Format = Literal["scalear", "diffusers"]

_WEIGHT_SOURCES = ("weights", "source", "subfolder")  # arguments of tokenizers that the exported weights replace


def export_model(
    generator: Generator,
    tokenizer: Tokenizer,
    parts: dict[str, Part],
    sampling: object,
    guidance: Guidance,
    schedule: ScaleSchedule,
    output_dir: str,
    class_names: list[str] | None,
    format: Format,
    force: bool,
) -> None:
    """Write a model with its weights, and how it samples.

    Args:
        generator: With the weights to write.
        tokenizer: Likewise.
        parts: What the two are built from, under the keys `generator` and `tokenizer`.
        sampling: Settings that the generator's head samples with.
        guidance: Likewise.
        schedule: The scales to sample.
        output_dir: Folder to make.
        class_names: Name of each label.
        format: `scalear` for a `ScaleARModel`, `diffusers` for a `ScaleARPipeline`.
        force: Replace a model that is there.

    Raises:
        ValueError: Something else is at `output_dir`.
    """
    kept = {name: value for name, value in parts["tokenizer"]["init_args"].items() if name not in _WEIGHT_SOURCES}
    # Built on the meta device, and then given the modules that hold the weights already.
    with torch.device("meta"):
        model = ScaleARModel(
            generator=parts["generator"],
            tokenizer={"class_path": parts["tokenizer"]["class_path"], "init_args": kept},
            sampling=settings_part(sampling),
            guidance=settings_part(guidance),
            scales=str(schedule),
            class_names=class_names,
        )
    model.generator, model.tokenizer = generator, tokenizer
    if format == "scalear":
        model.save_pretrained(output_dir, force=force)
    else:
        from scalear.interop.hub.diffusers import ScaleARPipeline  # here, for it takes long to import

        with new_folder(output_dir, force) as partial:
            ScaleARPipeline.from_model(model).save_pretrained(partial)
