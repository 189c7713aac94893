"""One object that makes images: tokenizer, pyramid, generator, and how all of it samples.

Legend: B batch, C latent channels, h w the latent, H W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalear.draws import Draws
from scalear.fast.accelerate import accelerate
from scalear.guidance import Guidance
from scalear.hardware.precision import AUTO, Precision, autocast
from scalear.models.generator import Forced, Generator, Loss
from scalear.models.head import Head
from scalear.models.transformer import ScaleTransformer
from scalear.pyramid import Content, Pyramid
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule
from scalear.tokenizers.base import Tokenizer


class ImageModel(nn.Module):
    """Class labels to images, and images to a loss.

    Every part is built from the one that it belongs to: the pyramid from the tokenizer, the transformer from what the
    pyramid holds, the head from both.

    Args:
        tokenizer: Images to latents and back.
        pyramid: Class of the pyramid; called with the tokenizer.
        transformer: Class of the transformer; called with the channels of a context token.
        head: Class of the head; called with (content, width of the semantics, schedule).
        sampling: How all sampling is done: the settings that the head takes.
        guidance: Classifier-free guidance of all sampling.
        label_drop_prob: Share of training samples whose label becomes the null class.
        fast: Let parts take faster ways to the same results: `scalear.fast`.

    Raises:
        ValueError: Parts do not fit one another.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pyramid: Callable[[Tokenizer], Pyramid],
        transformer: Callable[[int], ScaleTransformer],
        head: Callable[[Content, int, ScaleSchedule], Head],
        sampling: Sampling,
        guidance: Guidance,
        label_drop_prob: float = 0.1,
        fast: bool = True,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.pyramid = pyramid(tokenizer)
        self.generator = Generator(self.pyramid.content, transformer, head, label_drop_prob)
        self.sampling = sampling
        self.guidance = guidance
        self.generator.check_sampling(sampling)
        if fast:
            accelerate(self)

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales of training, and of sampling unless others are asked for."""
        return self.generator.schedule

    @property
    def num_classes(self) -> int:
        return self.generator.num_classes

    @property
    def device(self) -> torch.device:
        return self.tokenizer.latent_mean.device

    def image_size(self, schedule: ScaleSchedule | None = None) -> tuple[int, int]:
        """Pixels (H, W) of an image of these scales."""
        height, width = self.latent_size(schedule)
        return height * self.tokenizer.stride, width * self.tokenizer.stride

    def latent_size(self, schedule: ScaleSchedule | None = None) -> tuple[int, int]:
        """Cells (h, w) of the latent of these scales."""
        height, width = (schedule or self.schedule).sizes[-1]
        return height * self.pyramid.patch_size, width * self.pyramid.patch_size

    def check(self, schedule: ScaleSchedule) -> None:
        """Refuse scales that cannot be sampled.

        Raises:
            ValueError: Pyramid or transformer do not serve them; names them, and what is served.
        """
        self.generator.transformer.check(schedule)
        self.pyramid.check(schedule, self.latent_size(schedule))

    @torch.no_grad()
    def latent(self, inputs: Tensor, cached: bool, draws: Draws | None = None) -> Tensor:
        """latent_BChw of images; or what else the pyramid takes apart (`ImagePyramid`).

        Args:
            inputs: image_BCHW in [-1, 1]; or, if `cached`, what `tokenizer.moments` made of it, in any type.
            cached: Which of the two.
            draws: `posterior`, of which a sample is made, where the tokenizer has one; None for its mode.
        """
        moments = inputs.float() if cached else self.pyramid.moments(self.tokenizer, inputs, self.schedule)
        noise = None
        if draws is not None and self.tokenizer.has_posterior:
            noise = draws.normal("posterior", self.tokenizer.latent_channels, *moments.shape[-2:])
        return self.tokenizer.latent(moments, noise)

    def image(self, scales: list[Tensor], schedule: ScaleSchedule | None = None) -> Tensor:
        """image_BCHW in [-1, 1] of the content of scales 0, 1 ... of the schedule; coarse ones alone are enlarged."""
        schedule = schedule or self.schedule
        latent_BChw = self.pyramid.latent(scales, schedule)
        if len(scales) < schedule.num_scales:
            latent_BChw = F.interpolate(latent_BChw, self.latent_size(schedule))
        return self.tokenizer.decode(latent_BChw)

    def loss(self, latent_BChw: Tensor, label_B: Tensor, draws: Draws, schedule: ScaleSchedule | None = None) -> Loss:
        """Training loss of latents; see `Generator.loss`.

        Raises:
            ValueError: The latents cannot be taken apart into these scales.
        """
        return self.generator.loss(self.pyramid.build(latent_BChw, schedule or self.schedule), label_B, draws)

    def sample_scales(
        self,
        label_B: Tensor,
        draws: Draws,
        schedule: ScaleSchedule | None = None,
        guidance: Guidance | None = None,
        forced: Forced | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[Tensor]:
        """Content of each scale as soon as it is sampled; arguments and errors as `Generator.generate` and `check`."""
        schedule, sampling, guidance = schedule or self.schedule, sampling or self.sampling, guidance or self.guidance
        self.check(schedule)
        return self.generator.generate(self.pyramid, label_B, draws, sampling, guidance, schedule, forced)

    def sample_latent(self, label_B: Tensor, draws: Draws, schedule: ScaleSchedule | None = None, **how: Any) -> Tensor:
        """latent_BChw, float32; arguments and errors as `sample_scales`."""
        schedule = schedule or self.schedule
        return self.pyramid.latent(list(self.sample_scales(label_B, draws, schedule, **how)), schedule)

    def sample(self, label_B: Tensor, draws: Draws, schedule: ScaleSchedule | None = None, **how: Any) -> Tensor:
        """image_BCHW in [-1, 1]; arguments and errors as `sample_scales`."""
        return self.image(list(self.sample_scales(label_B, draws, schedule, **how)), schedule)

    def sample_growing(
        self, label_B: Tensor, draws: Draws, schedule: ScaleSchedule | None = None, **how: Any
    ) -> Iterator[Tensor]:
        """The image of `sample` as far as it is known after each scale; arguments and errors as `sample_scales`."""
        scales: list[Tensor] = []
        for content in self.sample_scales(label_B, draws, schedule, **how):
            scales.append(content)
            yield self.image(scales, schedule)

    def autocast(self, precision: Precision = AUTO) -> AbstractContextManager:
        """What matrix products run in: the precision of the weights where that is a half one, else the given.

        Args:
            precision: `auto` is the fastest one here, or that of an autocast around the call.
        """
        weight = self.generator.transformer.class_embedding.weight
        if weight.dtype == torch.float32:
            return autocast(weight.device, precision)
        return torch.autocast(weight.device.type, weight.dtype)
