"""Tokenizer and generator as one object that needs no Trainer, and as a folder to share.

    config.json         what the parts are built from, how to sample, class names, version of this library
    model.safetensors   weights (the average, where a run kept one) and the latent's statistics

Legend: B batch, C latent channels, h w the latent, H W pixels.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
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
from scalear.draws import SeededDraws
from scalear.evaluation.images import to_uint8
from scalear.interop.folder import new_folder
from scalear.interop.parts import Part, build, build_settings
from scalear.models.generator import Generator
from scalear.precision import AUTO, Precision, autocast
from scalear.scales import ScaleSchedule
from scalear.tokenizers.base import Tokenizer

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_CARD = """---
{{ card_data }}
---

# Class-conditional images, scale by scale

{{ num_parameters }} parameters, {{ num_classes }} classes, scales {{ scales }}, {{ tokenizer }}.
Made by scalear {{ version }}.

```python
from scalear.interop.pretrained import ScaleARModel

model = ScaleARModel.from_pretrained("...")  # this folder, or its id on the Hub
images = model.generate(labels=[0, 1])
```
"""


class ScaleARModel(
    nn.Module, ModelHubMixin, library_name="scalear", tags=["image-generation"], model_card_template=_CARD
):
    """Labels to images. In evaluation mode and on the CPU when made; moves as any module.

    Args:
        generator: Part (`class_path`, `init_args`) of a `Generator`.
        tokenizer: Part of a `Tokenizer`, without the arguments that name its weights.
        sampling: Part of what the generator's head samples with, such as `FlowSolver`.
        guidance: Part of a `Guidance`.
        scales: Scales to sample, such as "1,2,4"; None for the generator's.
        class_names: Name of each label, if they have names.

    Attributes:
        sampling: Replace it to sample otherwise.
        guidance: Likewise.
    """

    def __init__(
        self,
        generator: Part,
        tokenizer: Part,
        sampling: Part,
        guidance: Part,
        scales: str | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.config = {
            "generator": generator,
            "tokenizer": tokenizer,
            "sampling": sampling,
            "guidance": guidance,
            "scales": scales,
            "class_names": class_names,
        }
        self.generator = build(Generator, generator)
        self.tokenizer = build(Tokenizer, tokenizer)
        self.generator.bind(self.tokenizer)
        self.sampling = build_settings(sampling)
        self.generator.check_sampling(self.sampling)
        self.guidance = build_settings(guidance)
        self.scales = scales
        self.class_names = class_names
        self.eval()

    @torch.inference_mode()
    def generate(
        self,
        labels: Sequence[int | str],
        seeds: Sequence[int | tuple[int, int]] | None = None,
        guidance: float | None = None,
        scales: str | None = None,
        output_type: Literal["pil", "np"] = "pil",
        precision: Precision = AUTO,
    ) -> list[Image.Image] | NDArray:
        """Sample images of the given classes.

        Args:
            labels: Class indices or names; `num_classes` samples without a class.
            seeds: One per image: number i, or pair (seed, i), stands for image i of the sample set that
                `scalear predict` writes with that `samples.seed` (0 for a number). Default: 0, 1, 2 ...
            guidance: Guidance weight in place of the model's own; 1.0 is off.
            scales: Scales in place of the model's own, if the generator serves them.
            output_type: `pil`, or `np` for one uint8 array (B, H, W, C).
            precision: Of matrix products; see `compute_precision`.

        Raises:
            ValueError: A label does not exist, or there is not one seed per image.
        """
        label_B = label_indices(labels, self.class_names).to(self.device)
        seeds = range(len(label_B)) if seeds is None else seeds
        if len(seeds) != len(label_B):
            raise ValueError(f"got {len(seeds)} seeds for {len(label_B)} labels; give one per image")
        draws = SeededDraws([seed if isinstance(seed, tuple) else (0, int(seed)) for seed in seeds], self.device)
        scales = scales or self.scales
        schedule = ScaleSchedule.parse(scales) if scales else self.generator.schedule
        settings = self.guidance if guidance is None else replace(self.guidance, weight=guidance)
        with compute_precision(self, precision):
            latent_BChw = self.generator.generate(label_B, draws, self.sampling, settings, schedule)
            image_BCHW = self.tokenizer.decode(latent_BChw)
        images = to_uint8(image_BCHW).permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return images
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def save_pretrained(self, save_directory: str | Path, *, force: bool = False, **kwargs: Any) -> str | None:
        """Write the model into a new folder, completely or not at all.

        Args:
            save_directory: Folder to make.
            force: Replace a model that is there.
            **kwargs: As in `huggingface_hub.ModelHubMixin`: `repo_id`, `push_to_hub` ...

        Raises:
            ValueError: Something else is there.
        """
        with new_folder(save_directory, force) as partial:
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
            num_parameters=f"{sum(parameter.numel() for parameter in self.generator.parameters()):,}",
            num_classes=self.generator.num_classes,
            scales=self.scales or self.generator.schedule,
            tokenizer=self.tokenizer.title,
            version=scalear.__version__,
            **kwargs,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"scalear_version": scalear.__version__, **self.config}
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
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
        missing = {"generator", "tokenizer", "sampling", "guidance"} - parts.keys()
        if missing:
            raise ValueError(f"{CONFIG} of {model_id} is not one of scalear: it has no {', '.join(sorted(missing))}")
        weights: str | Path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            fetch = {"cache_dir": cache_dir, "force_download": force_download, "local_files_only": local_files_only}
            weights = hf_hub_download(model_id, WEIGHTS, revision=revision, token=token, **fetch)
        model = cls(**parts)
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"{weights} is damaged, or not what {CONFIG} beside it describes: {error}") from error
        return model


def label_indices(labels: Sequence[int | str], class_names: list[str] | None) -> Tensor:
    """Labels given as indices or names, as (B,) int64.

    Raises:
        ValueError: A name is not one of the classes, or there is no label at all.
    """
    if not len(labels):
        raise ValueError("no labels to sample; give at least one")
    names = class_names or []
    for label in labels:
        if isinstance(label, str) and label not in names:
            known = f"classes are {', '.join(names[:10])} ..." if names else "this model's classes have no names"
            raise ValueError(f"there is no class {label!r}: {known}")
    return torch.tensor([names.index(label) if isinstance(label, str) else int(label) for label in labels])


def compute_precision(module: nn.Module, precision: Precision) -> AbstractContextManager:
    """What matrix products of a module run in: the precision of its weights where that is a half one, else the given.

    Args:
        module: All of its weights are of one precision.
        precision: `auto` is the fastest one here, or that of an autocast around the call.
    """
    weight = next(module.parameters())
    if weight.dtype == torch.float32:
        return autocast(weight.device, precision)
    return torch.autocast(weight.device.type, weight.dtype)
