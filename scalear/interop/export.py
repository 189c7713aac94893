"""A trained generator, taken out of its run: `scalear export`."""

from dataclasses import asdict
from typing import Any, Literal

import torch

from scalear.files import atomic_folder, check_free
from scalear.image_model import ImageModel
from scalear.interop.parts import describe
from scalear.interop.pretrained import ScaleARModel
from scalear.training.checkpoints import load_weights
from scalear.training.generator.module import GeneratorModule

Format = Literal["scalear", "diffusers"]

_IMAGE_MODEL = f"{ImageModel.__module__}.{ImageModel.__qualname__}"
_WEIGHT_SOURCES = ("weights", "source", "subfolder")  # arguments of tokenizers that the exported weights replace


def export_run(
    module: GeneratorModule,
    config: dict[str, Any],
    ckpt_path: str | None,
    output_dir: str,
    class_names: list[str] | None,
    format: Format,
    force: bool,
) -> None:
    """Write the model that `scalear predict` would sample from, and how it would.

    Args:
        module: Built from `config`; gets the weights of the checkpoint, averages where the run kept them.
        config: The resolved config, `model` of it.
        ckpt_path: Checkpoint of the run; None for the weights that the config names.
        output_dir: Folder to make.
        class_names: Name of each label.
        format: `scalear` for a `ScaleARModel`, `diffusers` for a `ScaleARPipeline`.
        force: Replace a model that is there.

    Raises:
        ValueError: The checkpoint is sharded or of another tokenizer.
    """
    check_free(output_dir, force)
    load_weights(module, ckpt_path)
    given = config["model"]["init_args"]
    parts = {name: given[name] for name in ("pyramid", "transformer", "head", "label_drop_prob")}
    kept = {name: value for name, value in given["tokenizer"]["init_args"].items() if name not in _WEIGHT_SOURCES}
    parts["tokenizer"] = {"class_path": given["tokenizer"]["class_path"], "init_args": kept}
    parts |= {"sampling": describe(module.model.sampling), "guidance": asdict(module.model.guidance)}
    # Built on the meta device, and then given the modules that hold the weights already.
    with torch.device("meta"):
        model = ScaleARModel(
            model={"class_path": _IMAGE_MODEL, "init_args": parts},
            scales=str(module.samples.schedule(module.model.schedule)),
            class_names=class_names,
        )
    model.model = module.model
    if format == "scalear":
        model.save_pretrained(output_dir, force=force)
    else:
        from scalear.interop.diffusers import ScaleARPipeline  # here, for it takes long to import

        with atomic_folder(output_dir, force) as partial:
            ScaleARPipeline.from_model(model).save_pretrained(partial)
