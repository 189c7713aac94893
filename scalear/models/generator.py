"""A generator: transformer and head put together. It sees the scales of latents and labels, never an image.

Legend: B batch, K scales, L tokens of all scales, l of one scale, C context channels, D semantics.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from scalear.draws import Draws
from scalear.guidance import Guidance
from scalear.models.head import Head
from scalear.models.transformer import ScaleTransformer
from scalear.pyramid import Content, Decomposition, Pyramid, join
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule

Forced = Sequence[tuple[Tensor, Tensor] | None]
"""Per scale None, or its content where that is known, and where it is: (B, l) bool."""


@dataclass
class Loss:
    """What training needs and what it logs.

    Attributes:
        total: The scalar to minimise.
        schedule: The K scales.
        per_scale: "loss" and what else the head measures: the mean over each scale, (K,), detached.
        overall: The same, over all scales as weighted in the total.
    """

    total: Tensor
    schedule: ScaleSchedule
    per_scale: dict[str, Tensor]
    overall: dict[str, Tensor]


class Generator(nn.Module):
    """Class-conditional scale-wise autoregressive generator.

    Args:
        content: What the scales of its pyramid hold.
        transformer: Class of the transformer, which carries the schedule; called with the channels of a context token.
        head: Class of the head; called with (content, width of the semantics, schedule).
        label_drop_prob: Share of training samples whose label becomes the null class.
    """

    def __init__(
        self,
        content: Content,
        transformer: Callable[[int], ScaleTransformer],
        head: Callable[[Content, int, ScaleSchedule], Head],
        label_drop_prob: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= label_drop_prob <= 1:
            raise ValueError(f"label_drop_prob must be in [0, 1], got {label_drop_prob}")
        self.transformer = transformer(content.dim)
        self.head = head(content, self.transformer.dim, self.transformer.schedule)
        self.label_drop_prob = label_drop_prob

    @property
    def schedule(self) -> ScaleSchedule:
        return self.transformer.schedule

    @property
    def num_classes(self) -> int:
        return self.transformer.num_classes

    def loss(self, latent: Decomposition, label_B: Tensor, draws: Draws) -> Loss:
        """Training loss: the head's, summed over scales with the head's weights.

        Args:
            latent: Targets and contexts.
            label_B: Class indices; -1 is unlabelled and becomes the null class.
            draws: `label_drop` here, the rest in the head.
        """
        schedule = latent.schedule
        dropped_B = (draws.uniform("label_drop") < self.label_drop_prob) | (label_B < 0)
        cond_BD = self.transformer.embed(label_B.masked_fill(dropped_B, self.num_classes))
        hidden_BLD = self.transformer(join(latent.contexts), cond_BD, schedule)
        per_scale = self.head.loss(hidden_BLD, latent.targets, schedule, draws)
        weights_K = torch.tensor(self.head.scale_weights(schedule), device=hidden_BLD.device)
        overall = {name: (value_K * weights_K).sum() for name, value_K in per_scale.items()}
        return Loss(
            total=overall["loss"],
            schedule=schedule,
            per_scale={name: value_K.detach() for name, value_K in per_scale.items()},
            overall={name: value.detach() for name, value in overall.items()},
        )

    @torch.no_grad()
    def generate(
        self,
        pyramid: Pyramid,
        label_B: Tensor,
        draws: Draws,
        sampling: Sampling,
        guidance: Guidance,
        schedule: ScaleSchedule | None = None,
        forced: Forced | None = None,
    ) -> Iterator[Tensor]:
        """Sample scale by scale with a key-value cache, yielding the content of each when it is done.

        Args:
            pyramid: Makes contexts of what is sampled.
            label_B: Class indices in [0, num_classes]; `num_classes` samples without a class.
            draws: Random numbers of each image; see `scalear.draws`.
            sampling: Settings of the head: how one scale is sampled.
            guidance: Classifier-free guidance; without effect where there are no classes.
            schedule: Scales, which pyramid and transformer serve; those of the transformer by default.
            forced: Per scale None, or known content and where it is known, (B, l) bool. It replaces what was sampled
                before anything reads it.

        Raises:
            ValueError: A label is out of range, the head takes other settings, they do not serve the schedule, or
                `forced` does not fit it.
        """
        schedule, batch = schedule or self.schedule, len(label_B)
        self.check_labels(label_B)
        self.check_sampling(sampling)
        sampling.check(schedule, guidance)
        if forced is not None and len(forced) != schedule.num_scales:
            raise ValueError(f"forced has {len(forced)} entries for the {schedule.num_scales} scales {schedule}")
        guided = guidance.active and self.num_classes > 0  # without classes both branches would be the same
        if guided:  # both branches in one batch
            label_B = torch.cat([label_B, torch.full_like(label_B, self.num_classes)])
        cond_BD = self.transformer.embed(label_B)
        cache = self.transformer.make_cache(schedule)
        scales: list[Tensor] = []
        context_BlC = cond_BD.new_zeros(len(label_B), 0, self.transformer.context_dim)
        for k in range(schedule.num_scales):
            if k:
                context_BlC = pyramid.next_context(scales, k, schedule)
                context_BlC = torch.cat([context_BlC, context_BlC]) if guided else context_BlC
            hidden_BlD = self.transformer.step(context_BlC, cond_BD, cache)
            uncond_BlD = hidden_BlD[batch:] if guided else None
            content = self.head.sample(hidden_BlD[:batch], uncond_BlD, k, schedule, draws, sampling, guidance)
            if forced is not None and forced[k] is not None:
                content = _put(content, *forced[k], k, schedule)
            scales.append(content)
            yield content

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse settings that are for another head.

        Raises:
            ValueError: Names the settings and what the head takes.
        """
        wanted = self.head.sampling_type
        if not isinstance(sampling, wanted):
            options = ", ".join(field.name for field in fields(wanted))
            raise ValueError(f"{type(self.head).__name__} cannot sample with {sampling}: set {options}")

    def check_labels(self, label_B: Tensor) -> None:
        """Refuse labels outside [0, num_classes].

        Raises:
            ValueError: Names the first bad label and the range.
        """
        bad = label_B[(label_B < 0) | (label_B > self.num_classes)]
        if len(bad):
            raise ValueError(
                f"label {int(bad[0])} is out of range: the model knows classes 0..{self.num_classes - 1} "
                f"(and {self.num_classes}, the null class)"
            )


def _put(content: Tensor, known: Tensor, keep_Bl: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
    """Content of scale k with what is known in its place."""
    if content.is_floating_point() > known.is_floating_point():  # weights of codes, whereas what is known are codes
        known = nn.functional.one_hot(known, content.shape[-1]).to(content.dtype)
    if known.shape != content.shape or keep_Bl.shape != content.shape[:2]:  # not broadcast: that would hide a mistake
        height, width = schedule.sizes[k]
        raise ValueError(
            f"what is forced at scale {k} of {schedule}, {height}x{width}, is {tuple(known.shape)} with a mask "
            f"{tuple(keep_Bl.shape)}: it must be {tuple(content.shape)} with a mask {tuple(content.shape[:2])}"
        )
    return torch.where(keep_Bl[..., None] if content.ndim == 3 else keep_Bl, known, content)
