"""A trained generator, taken out of its run: `scalear export`."""

from typing import Any, Literal

import torch

from scalear.interop.folder import check_free, new_folder
from scalear.interop.parts import describe
from scalear.interop.pretrained import ScaleARModel
from scalear.training.checkpoints import load_weights
from scalear.training.generator_module import GeneratorModule

Format = Literal["scalear", "diffusers"]


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
    parts = config["model"]["init_args"]
    replaced = module.tokenizer.weight_arguments  # by the exported weights
    kept = {name: value for name, value in parts["tokenizer"]["init_args"].items() if name not in replaced}
    # Built on the meta device, and then given the modules that hold the weights already.
    with torch.device("meta"):
        model = ScaleARModel(
            generator=parts["generator"],
            tokenizer={"class_path": parts["tokenizer"]["class_path"], "init_args": kept},
            sampling=describe(module.sampling),
            guidance=describe(module.guidance),
            scales=str(module.samples.schedule(module.generator.schedule)),
            class_names=class_names,
        )
    model.generator, model.tokenizer = module.generator, module.tokenizer
    if format == "scalear":
        model.save_pretrained(output_dir, force=force)
    else:
        from scalear.interop.diffusers import ScaleARPipeline  # here, for it takes long to import

        with new_folder(output_dir, force) as partial:
            ScaleARPipeline.from_model(model).save_pretrained(partial)
