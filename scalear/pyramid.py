"""Pyramids: what is predicted at each scale (targets), and what the transformer reads for it (contexts).

Legend: B batch, C latent channels, h w the latent, p patch size, l tokens of one scale.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from scalear.scales import ScaleSchedule


@dataclass
class Pyramid:
    """One latent, taken apart into scales.

    Attributes:
        schedule: The scales.
        targets: Per scale what it must be, (B, l_k, p*p*C).
        contexts: Per scale what the transformer reads, (B, l_k, p*p*C); `contexts[0]` has no tokens, because
            scale 0 is predicted from the class alone.
    """

    schedule: ScaleSchedule
    targets: list[Tensor]
    contexts: list[Tensor]


class LatentPyramid:
    """FlowAR's pyramid: every scale is the latent itself, averaged down (paper section 3.2).

    The target of scale k is the full latent, area-averaged to its size. The context of scale k is the latent
    of scale k-1, resized bicubically to the full size and then area-averaged to scale k, as the official code
    does (the paper writes Up(s, 2)). With a patch size p, a scale of n x n tokens is (pn) x (pn) latent cells,
    folded p x p at a time.

    Args:
        patch_size: Side p of the square of latent cells that makes one token.
    """

    def __init__(self, patch_size: int = 1) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {patch_size}")
        self.patch_size = patch_size

    def build(self, latent: Tensor, schedule: ScaleSchedule) -> Pyramid:
        """latent_BChw -> targets and contexts of all scales, float32.

        Raises:
            ValueError: The schedule does not end at the latent's token map.
        """
        height, width = latent.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide the {height}x{width} latent")
        schedule.require_final((height // self.patch_size, width // self.patch_size))
        latent = latent.float()
        targets = [self._fold(self._area(latent, size)) for size in schedule.sizes]
        contexts = [targets[0][:, :0]]
        contexts += [self.next_context(targets[:k], k, schedule) for k in range(1, schedule.num_scales)]
        return Pyramid(schedule, targets, contexts)

    def next_context(self, scales: list[Tensor], k: int, schedule: ScaleSchedule) -> Tensor:
        """Context (B, l_k, p*p*C) of scale k >= 1 from scales 0..k-1, given as in `Pyramid.targets`."""
        coarse = self._unfold(scales[k - 1], schedule.sizes[k - 1])
        full = F.interpolate(coarse, size=self._cells(schedule.sizes[-1]), mode="bicubic", align_corners=False)
        return self._fold(self._area(full, schedule.sizes[k]))

    def latent(self, scales: list[Tensor], schedule: ScaleSchedule) -> Tensor:
        """The latent_BChw that a complete list of scales stands for: the last one."""
        return self._unfold(scales[-1], schedule.sizes[-1])

    def _cells(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] * self.patch_size, size[1] * self.patch_size

    def _area(self, latent_BChw: Tensor, size: tuple[int, int]) -> Tensor:
        cells = self._cells(size)
        return latent_BChw if latent_BChw.shape[-2:] == cells else F.adaptive_avg_pool2d(latent_BChw, cells)

    def _fold(self, latent_BChw: Tensor) -> Tensor:
        p = self.patch_size
        return rearrange(latent_BChw, "B C (h p) (w q) -> B (h w) (p q C)", p=p, q=p).contiguous()

    def _unfold(self, tokens_BlC: Tensor, size: tuple[int, int]) -> Tensor:
        p, (h, w) = self.patch_size, size
        return rearrange(tokens_BlC, "B (h w) (p q C) -> B C (h p) (w q)", h=h, w=w, p=p, q=p)


def join(scales: list[Tensor]) -> Tensor:
    """Per-scale (B, l_k, C) to one (B, L, C)."""
    return torch.cat(scales, dim=1)
