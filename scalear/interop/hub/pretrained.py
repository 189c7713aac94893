"""Tokenizer and generator as one object that needs no Trainer, and as a folder to share.

    config.json         what the parts are built from, how to sample, class names, version of this library
    model.safetensors   weights (the average, where a run kept one) and the latent's statistics

Legend: B batch, C latent channels, h w the latent, H W pixels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import scalear
from scalear.class_paths import Part, build, class_path, settings_part, with_arguments
from scalear.draws import SeededDraws
from scalear.evaluation.images import to_uint8
from scalear.files import atomic_folder
from scalear.hardware.precision import AUTO, Precision
from scalear.image_model import ImageModel
from scalear.models.generator import Generator
from scalear.scales import ScaleSchedule

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_CARD = """---
{{ card_data }}
---

# Class-conditional images, scale by scale

{{ num_parameters }} parameters, {{ num_classes }} classes, scales {{ scales }}, {{ tokenizer }}.
Made by scalear {{ version }}.

```python
from scalear.interop.hub.pretrained import ScaleARModel

model = ScaleARModel.from_pretrained("...")  # this folder, or its id on the Hub
images = model.generate(labels=[0, 1])
```
"""


class ScaleARModel(
    nn.Module, ModelHubMixin, library_name="scalear", tags=["image-generation"], model_card_template=_CARD
):
    """Labels to images. In evaluation mode and on the CPU when made; moves as any module.

    Args:
        model: Part (`class_path`, `init_args`) of an `ImageModel`, without `fast` and what names the tokenizer's
            weights.
        scales: Scales to sample, such as "1,2,4"; None for the generator's.
        class_names: Name of each label, if they have names.
        fast: Let parts take faster ways to the same results.

    Attributes:
        model: The `ImageModel`. Replace its `sampling` or `guidance` to sample otherwise.
    """

    def __init__(
        self, model: Part, scales: str | None = None, class_names: list[str] | None = None, fast: bool = True
    ) -> None:
        super().__init__()
        self._part = model
        self.model = build(ImageModel, with_arguments(model, fast=fast))
        self.scales = scales
        self.class_names = class_names
        self.fast = fast
        self.eval()

    @property
    def model_part(self) -> Part:
        """The whole, as it samples now."""
        settings = {"sampling": settings_part(self.model.sampling), "guidance": asdict(self.model.guidance)}
        return with_arguments(self._part, **settings)

    @property
    def generator_part(self) -> Part:
        """The generator alone, as a part that needs no tokenizer to be built."""
        return generator_part(self._part["init_args"], self.model)

    @property
    def tokenizer_part(self) -> Part:
        """The tokenizer alone."""
        return self._part["init_args"]["tokenizer"]

    @torch.inference_mode()
    def generate(
        self,
        labels: int | str | Sequence[int | str],
        seeds: Sequence[int | tuple[int, int]] | None = None,
        guidance: float | None = None,
        scales: str | None = None,
        output_type: Literal["pil", "np"] = "pil",
        precision: Precision = AUTO,
    ) -> list[Image.Image] | NDArray:
        """Sample images of the given classes.

        Args:
            labels: Class indices or names, one or several; `num_classes` samples without a class.
            seeds: One per image: number i, or pair (seed, i), stands for image i of the sample set that
                `scalear predict` writes with that `samples.seed` (0 for a number). Default: 0, 1, 2 ...
            guidance: Guidance weight in place of the model's own; 1.0 is off.
            scales: Scales in place of the model's own, if the generator serves them.
            output_type: `pil`, or `np` for one uint8 array (B, H, W, C).
            precision: Of matrix products; see `ImageModel.autocast`.

        Raises:
            ValueError: A label does not exist, or there is not one seed per image.
        """
        model = self.model
        label_B = label_indices(labels, self.class_names).to(model.device)
        seeds = range(len(label_B)) if seeds is None else seeds
        if len(seeds) != len(label_B):
            raise ValueError(f"got {len(seeds)} seeds for {len(label_B)} labels; give one per image")
        draws = SeededDraws([seed if isinstance(seed, tuple) else (0, int(seed)) for seed in seeds], model.device)
        scales = scales or self.scales
        schedule = ScaleSchedule.parse(scales) if scales else None
        settings = None if guidance is None else replace(model.guidance, weight=guidance)
        with model.autocast(precision):
            image_BCHW = model.sample(label_B, draws, schedule, guidance=settings)
        images = to_uint8(image_BCHW).permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return images
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]

    def save_pretrained(self, save_directory: str | Path, *, force: bool = False, **kwargs: Any) -> str | None:
        """Write the model into a new folder, completely or not at all.

        Args:
            save_directory: Folder to make.
            force: Replace a model that is there.
            **kwargs: As in `huggingface_hub.ModelHubMixin`: `repo_id`, `push_to_hub` ...

        Raises:
            ValueError: Something else is there.
        """
        with atomic_folder(save_directory, force) as partial:
            return super().save_pretrained(partial, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "ScaleARModel":
        """Read a model from a folder that `save_pretrained` wrote, or from the Hub.

        Args:
            pretrained_model_name_or_path: The folder, or the id of a Hub repository.
            **kwargs: As in `huggingface_hub.ModelHubMixin`: `revision`, `token`, `local_files_only` ...

        Raises:
            ValueError: There is no such model, or it is damaged or of a version that this one cannot read.
        """
        name = pretrained_model_name_or_path
        if Path(name).is_dir() and not (Path(name) / CONFIG).is_file():
            raise ValueError(f"{name} holds no {CONFIG}: give a folder that `scalear export` or save_pretrained wrote")
        try:
            return super().from_pretrained(name, **kwargs)
        except json.JSONDecodeError as error:
            raise ValueError(f"{CONFIG} of {name} is not JSON ({error}): copy or export the model again") from error
        except (HFValidationError, EntryNotFoundError, HfHubHTTPError) as error:
            raise ValueError(
                f"{name} is neither a folder nor can it be fetched from the Hub ({str(error).splitlines()[0]}). "
                "Without a network, download it elsewhere (`hf download`) and give the folder"
            ) from error

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """README.md of the folder."""
        return super().generate_model_card(
            num_parameters=f"{sum(parameter.numel() for parameter in self.model.generator.parameters()):,}",
            num_classes=self.model.num_classes,
            scales=self.scales or self.model.schedule,
            tokenizer=self.model.tokenizer.title,
            version=scalear.__version__,
            **kwargs,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"scalear_version": scalear.__version__, "model": self.model_part, "scales": self.scales}
        config |= {"class_names": self.class_names, "fast": self.fast}
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, save_directory / WEIGHTS, {"format": "pt"})

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **parts: Any,
    ) -> "ScaleARModel":
        if "model" not in parts:
            raise ValueError(
                f"{CONFIG} of {model_id} is not one of this version of scalear: it has no model. What an older version "
                "exported must be exported again, from a run of this one"
            )
        weights: str | Path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            fetch = {"cache_dir": cache_dir, "force_download": force_download, "local_files_only": local_files_only}
            weights = hf_hub_download(model_id, WEIGHTS, revision=revision, token=token, **fetch)
        model = cls(**parts)
        try:
            model.model.load_state_dict(load_file(weights))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"{weights} is damaged, or not what {CONFIG} beside it describes: {error}") from error
        return model


def generator_part(given: Part, model: ImageModel) -> Part:
    """The generator of a model alone, as a part that needs no tokenizer to be built.

    Args:
        given: What the model was built from, as in a config.
        model: Says what its pyramid holds.
    """
    kept = {name: given[name] for name in ("transformer", "head", "label_drop_prob") if name in given}
    return {"class_path": class_path(Generator), "init_args": {"content": asdict(model.pyramid.content), **kept}}


def label_indices(labels: int | str | Sequence[int | str], class_names: list[str] | None) -> Tensor:
    """Labels given as indices or names, one or several, as (B,) int64.

    Raises:
        ValueError: A name is not one of the classes, or there is no label at all.
    """
    labels = [labels] if isinstance(labels, int | str) else labels
    if not len(labels):
        raise ValueError("no labels to sample; give at least one")
    names = class_names or []
    for label in labels:
        if isinstance(label, str) and label not in names:
            known = f"classes are {', '.join(names[:10])} ..." if names else "this model's classes have no names"
            raise ValueError(f"there is no class {label!r}: {known}")
    return torch.tensor([names.index(label) if isinstance(label, str) else int(label) for label in labels])
