"""scalear's models as a diffusers pipeline, saved, loaded and moved by diffusers' own machinery.

Its components have diffusers' usual names: `transformer` is the generator, `vae` the tokenizer, `scheduler` says how to
sample. Weights are safetensors.

Legend: B batch, C latent channels, h w the latent, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn

from scalear.class_paths import Part, build, build_class, build_settings, settings_part
from scalear.draws import SeededDraws
from scalear.hardware.precision import AUTO, Precision
from scalear.image_model import ImageModel
from scalear.interop.hub.pretrained import ScaleARModel, label_indices
from scalear.pyramid import Pyramid
from scalear.scales import ScaleSchedule


class ScaleARComponent(ModelMixin, ConfigMixin):
    """A generator or a tokenizer, as diffusers saves and loads models.

    Args:
        class_path: Class of the part.
        init_args: Its arguments, as in a config.
    """

    @register_to_config
    def __init__(self, class_path: str, init_args: dict[str, Any]) -> None:
        super().__init__()
        self.part = build(nn.Module, {"class_path": class_path, "init_args": init_args})
        self.eval()

    @classmethod
    def wrap(cls, part: Part, module: nn.Module) -> "ScaleARComponent":
        """A component around a module that `part` describes."""
        with torch.device("meta"):
            component = cls(**part)
        component.part = module
        return component


class ScaleARScheduler(SchedulerMixin, ConfigMixin):
    """How to sample: the settings that diffusers keeps in schedulers, and what carries one scale over to the next.

    Args:
        sampling: Part of what the generator's head samples with, such as `FlowSolver`.
        guidance: Part of a `Guidance`; its weight is what `guidance_scale` replaces.
        pyramid: Part of the pyramid, which is built for the tokenizer.
        scales: Scales to sample; None for the generator's.
    """

    @register_to_config
    def __init__(self, sampling: Part, guidance: Part, pyramid: Part, scales: str | None = None) -> None:
        self.sampling = build_settings(sampling)
        self.guidance = build_settings(guidance)


class ScaleARPipeline(DiffusionPipeline):
    """Class-conditional images, scale by scale.

    Args:
        transformer: The generator.
        vae: The tokenizer.
        scheduler: How to sample.
        id2label: Name of each class index, as a string.
        fast: Let parts take faster ways to the same results.
    """

    def __init__(
        self,
        transformer: ScaleARComponent,
        vae: ScaleARComponent,
        scheduler: ScaleARScheduler,
        id2label: dict[str, str] | None = None,
        fast: bool = True,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=id2label, fast=fast)
        self.image_processor = VaeImageProcessor()
        self._made_of: tuple[nn.Module | SchedulerMixin, ...] = ()

    @classmethod
    def from_model(cls, model: ScaleARModel) -> "ScaleARPipeline":
        """The pipeline of a model; the two share their weights."""
        names = model.class_names and {str(index): name for index, name in enumerate(model.class_names)}
        images = model.model
        pyramid = model.model_part["init_args"]["pyramid"]
        return cls(
            ScaleARComponent.wrap(model.generator_part, images.generator),
            ScaleARComponent.wrap(model.tokenizer_part, images.tokenizer),
            ScaleARScheduler(settings_part(images.sampling), settings_part(images.guidance), pyramid, model.scales),
            names,
            model.fast,
        )

    @property
    def image_model(self) -> ImageModel:
        """The components as one model, which shares their weights; made anew where one of them was replaced."""
        components = self.transformer, self.vae, self.scheduler
        if self._made_of != components:
            generator, scheduler = self.transformer.part, self.scheduler
            self._image_model = ImageModel(
                self.vae.part,
                build_class(Pyramid, scheduler.config.pyramid),
                lambda context_dim: generator.transformer,
                lambda content, cond_dim, schedule: generator.head,
                scheduler.sampling,
                scheduler.guidance,
                fast=self.config.fast,
            )
            self._made_of = components
        return self._image_model

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str],
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_scale: float | None = None,
        scales: str | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        precision: Precision = AUTO,
    ) -> ImagePipelineOutput | tuple:
        """Sample one image per label.

        Args:
            class_labels: Class indices or names, one or several; `num_classes` samples without a class.
            generator: Freshly seeded with s, it gives the images that `scalear predict` samples with `samples.seed` s.
                Each call moves it on, so the next call samples others. Of a list, each gives one image, on any place
                in any batch: the first that it would give alone. None draws a seed from torch's global generator.
            guidance_scale: Guidance weight in place of the scheduler's; 1.0 is off.
            scales: Scales in place of the scheduler's, such as "1,2,4,8,16", if the generator serves them.
            output_type: `latent` is what the tokenizer decodes; the others as in diffusers.
            return_dict: False for a plain tuple.
            precision: Of matrix products, where the weights are in float32; `auto` is the fastest one here.

        Raises:
            ValueError: A label does not exist, or a list has not one generator per label.
        """
        model, guidance = self.image_model, self.scheduler.guidance
        names = self.config.id2label and list(self.config.id2label.values())
        label_B = label_indices(class_labels, names).to(self._execution_device)
        if guidance_scale is not None:
            guidance = replace(guidance, weight=guidance_scale)
        scales = scales or self.scheduler.config.scales
        schedule = ScaleSchedule.parse(scales) if scales else model.schedule
        draws = SeededDraws(_streams(generator, len(label_B)), label_B.device)
        contents: list[Tensor] = []
        with model.autocast(precision), self.progress_bar(total=schedule.num_scales) as bar:
            for content in model.sample_scales(label_B, draws, schedule, guidance):
                contents.append(content)
                bar.update()
            if output_type == "latent":
                image = model.pyramid.latent(contents, schedule)
            else:
                image = self.image_processor.postprocess(model.image(contents, schedule).float(), output_type)
        return ImagePipelineOutput(images=image) if return_dict else (image,)


def _streams(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[tuple[int, int]]:
    """Names of the random numbers of each image, (seed, i); see `scalear.draws`."""
    if isinstance(generator, list):
        if len(generator) != count:
            raise ValueError(f"got {len(generator)} generators for {count} labels; give one, or one per label")
        return [(_take_seed(each), 0) for each in generator]
    seed = int(torch.randint(2**63 - 1, ())) if generator is None else _take_seed(generator)
    return [(seed, i) for i in range(count)]


def _take_seed(generator: torch.Generator) -> int:
    """The generator's own seed at first, then numbers drawn from it."""
    seed = generator.initial_seed()
    untouched = torch.Generator(generator.device).manual_seed(seed).get_state()
    fresh = torch.equal(untouched, generator.get_state())
    drawn = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    return seed if fresh else int(drawn)
