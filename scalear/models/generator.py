"""A generator: pyramid, transformer and head put together. It sees latents and labels, never an image."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalear.draws import Draws
from scalear.flow import FlowSolver
from scalear.guidance import Guidance
from scalear.models.flow_head import FlowHead
from scalear.models.transformer import ScaleTransformer
from scalear.pyramid import LatentPyramid, Pyramid, join
from scalear.scales import ScaleSchedule


@dataclass
class Loss:
    """What training needs and what it logs.

    Attributes:
        total: The scalar to minimise.
        per_scale: Mean loss of each scale, (K,), detached.
    """

    total: Tensor
    per_scale: Tensor


class Generator(nn.Module):
    """Class-conditional scale-wise autoregressive generator.

    Args:
        transformer: Contexts to semantics; carries the schedule.
        head: Predicts a scale from its semantics.
        pyramid: Takes latents apart.
        label_drop_prob: Share of training samples whose label becomes the null class.
    """

    def __init__(
        self,
        transformer: ScaleTransformer,
        head: FlowHead,
        pyramid: LatentPyramid,
        label_drop_prob: float = 0.1,
    ) -> None:
        super().__init__()
        if transformer.dim != head.cond_dim:
            raise ValueError(f"the head's cond_dim is {head.cond_dim}, but the transformer's dim is {transformer.dim}")
        if transformer.context_dim != head.token_dim:
            raise ValueError(
                f"the transformer's context_dim is {transformer.context_dim}, but the head's token_dim is "
                f"{head.token_dim}: both are latent channels x patch size squared"
            )
        if not 0 <= label_drop_prob <= 1:
            raise ValueError(f"label_drop_prob must be in [0, 1], got {label_drop_prob}")
        self.transformer = transformer
        self.head = head
        self.pyramid = pyramid
        self.label_drop_prob = label_drop_prob

    @property
    def schedule(self) -> ScaleSchedule:
        return self.transformer.schedule

    @property
    def num_classes(self) -> int:
        return self.transformer.num_classes

    def check_latent(self, channels: int, size: tuple[int, int]) -> None:
        """Refuse latents that this generator was not built for.

        Raises:
            ValueError: Channels or sides differ; names both.
        """
        patch = self.pyramid.patch_size
        if channels * patch * patch != self.head.token_dim:
            raise ValueError(
                f"latents have {channels} channels and the patch size is {patch}: token_dim and context_dim must be "
                f"{channels * patch * patch}, not {self.head.token_dim}"
            )
        self.schedule.require_final((size[0] // patch, size[1] // patch))

    def loss(self, pyramid: Pyramid, label_B: Tensor, draws: Draws) -> Loss:
        """Training loss: every token of every scale weighs the same (official weights n_k^2 / n_K^2).

        Args:
            pyramid: Targets and contexts.
            label_B: Class indices; -1 is unlabelled and becomes the null class.
            draws: `label_drop` here, the rest in the head.
        """
        dropped_B = (draws.uniform("label_drop") < self.label_drop_prob) | (label_B < 0)
        cond_BD = self.transformer.embed(label_B.masked_fill(dropped_B, self.num_classes))
        hidden_BLD = self.transformer(join(pyramid.contexts[1:]), cond_BD)
        per_scale = self.head.loss(hidden_BLD, pyramid.targets, pyramid.schedule, draws)
        lengths = torch.tensor(pyramid.schedule.lengths, device=per_scale.device)
        return Loss(total=(per_scale * lengths / lengths[-1]).sum(), per_scale=per_scale.detach())

    @torch.no_grad()
    def generate(
        self,
        label_B: Tensor,
        draws: Draws,
        solver: FlowSolver,
        guidance: Guidance,
    ) -> Tensor:
        """Sample latents, scale by scale with a key-value cache.

        Args:
            label_B: Class indices in [0, num_classes]; `num_classes` samples without a class.
            draws: `noise_k` of each image; see `scalear.draws`.
            solver: Flow solver.
            guidance: Classifier-free guidance.

        Returns:
            latent_BChw, float32.

        Raises:
            ValueError: A label is out of range.
        """
        scales = list(self.generate_scales(label_B, draws, solver, guidance))
        return self.pyramid.latent(scales, self.schedule)

    @torch.no_grad()
    def generate_scales(
        self, label_B: Tensor, draws: Draws, solver: FlowSolver, guidance: Guidance
    ) -> Iterator[Tensor]:
        """As `generate`, yielding the tokens (B, l_k, C) of each scale when they are done."""
        self.check_labels(label_B)
        schedule, batch = self.schedule, len(label_B)
        labels = label_B
        if guidance.active:
            labels = torch.cat([label_B, torch.full_like(label_B, self.num_classes)])
        cond = self.transformer.embed(labels)
        cache = self.transformer.make_cache(len(labels), cond.device, _compute_dtype(cond))
        scales: list[Tensor] = []
        context = cond.new_zeros(len(labels), 0, self.head.token_dim)
        for k in range(schedule.num_scales):
            if k:
                context = self.pyramid.next_context(scales, k, schedule)
                context = torch.cat([context, context]) if guidance.active else context
            hidden = self.transformer.step(context, cond, cache)
            scales.append(
                self.head.sample(
                    hidden[:batch],
                    hidden[batch:] if guidance.active else None,
                    draws.normal(f"noise_{k}", schedule.lengths[k], self.head.token_dim),
                    schedule.scale(k),
                    solver.times(k, schedule.num_scales),
                    solver,
                    guidance.at_scale(k, schedule.num_scales),
                    guidance,
                )
            )
            yield scales[-1]

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


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products run in here: the autocast dtype where autocast is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
