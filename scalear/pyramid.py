"""Pyramids: what is predicted at each scale (targets), and what the transformer reads for it (contexts).

The content of a scale is what a head predicts and samples: latent cells for FlowAR, codes for FlexVAR and VAR.
Pyramids are plain objects, made for a tokenizer: the frozen quantizer that code pyramids work with stays out of a
generator's checkpoint.

Legend: B batch, C latent channels, V codebook, h w the latent, p patch size, l tokens of one scale.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from scalear.scales import ScaleSchedule
from scalear.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Content:
    """What the scales of a pyramid hold.

    Attributes:
        dim: Channels of a token that the transformer reads, and of one to predict where it is no code.
        num_codes: V where tokens are codes, None where they are latents.
    """

    dim: int
    num_codes: int | None = None


@dataclass
class Decomposition:
    """One latent, taken apart into scales.

    Attributes:
        schedule: The scales.
        targets: Per scale what it must be: (B, l_k, p*p*C) float, or codes (B, l_k) int64.
        contexts: Per scale what the transformer reads, (B, l_k, p*p*C); `contexts[0]` has no tokens, because
            scale 0 is predicted from the class alone.
    """

    schedule: ScaleSchedule
    targets: list[Tensor]
    contexts: list[Tensor]


class Pyramid(ABC):
    """Takes latents apart and puts them together; in YAML built without its first argument, the tokenizer.

    Attributes:
        content: Of every scale.
        patch_size: Side of the square of latent cells that makes one token.
    """

    content: Content
    patch_size = 1

    @abstractmethod
    def check(self, schedule: ScaleSchedule, size: tuple[int, int]) -> None:
        """Refuse scales that a latent of `size` (h, w) cannot be taken apart into.

        Raises:
            ValueError: Names both.
        """

    def moments(self, tokenizer: Tokenizer, image_BCHW: Tensor, schedule: ScaleSchedule) -> Tensor:
        """moments_BMhw of what `build` takes apart: of the latent of the image."""
        return tokenizer.moments(image_BCHW)

    @abstractmethod
    def build(self, latent: Tensor, schedule: ScaleSchedule) -> Decomposition:
        """latent_BChw -> targets and contexts of all scales; contexts are float32.

        Raises:
            ValueError: The latent cannot be taken apart so.
        """

    @abstractmethod
    def next_context(self, scales: list[Tensor], k: int, schedule: ScaleSchedule) -> Tensor:
        """Context (B, l_k, C) of scale k >= 1 from the content of scales 0..k-1, in training as in sampling."""

    @abstractmethod
    def latent(self, scales: list[Tensor], schedule: ScaleSchedule) -> Tensor:
        """The latent_BChw that the content of scales 0, 1 ... of the schedule stands for."""

    def _decomposition(self, targets: list[Tensor], schedule: ScaleSchedule) -> Decomposition:
        no_tokens_B0C = targets[0].new_zeros(len(targets[0]), 0, self.content.dim, dtype=torch.float32)
        return Decomposition(schedule, targets, [no_tokens_B0C, *self._contexts(targets, schedule)])

    def _contexts(self, targets: list[Tensor], schedule: ScaleSchedule) -> Iterator[Tensor]:
        """Of all scales but the first."""
        for k in range(1, schedule.num_scales):
            yield self.next_context(targets[:k], k, schedule)


class LatentPyramid(Pyramid):
    """FlowAR's pyramid: every scale is the latent itself, averaged down (paper section 3.2).

    The target of scale k is the full latent, area-averaged to its size. The context of scale k is the latent
    of scale k-1, resized bicubically to the full size and then area-averaged to scale k, as the official code
    does (`DirectPyramid` is what the paper writes). With a patch size p, a scale of n x n tokens is (pn) x (pn)
    latent cells, folded p x p at a time.

    Args:
        tokenizer: Any: the latent itself is the content.
        patch_size: p.
    """

    def __init__(self, tokenizer: Tokenizer, patch_size: int = 1) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {patch_size}")
        self.patch_size = patch_size
        self.content = Content(tokenizer.latent_channels * patch_size**2)

    def check(self, schedule: ScaleSchedule, size: tuple[int, int]) -> None:
        """The schedule must end at the latent's token map."""
        height, width = size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide the {height}x{width} latent")
        schedule.require_final((height // self.patch_size, width // self.patch_size))

    def build(self, latent: Tensor, schedule: ScaleSchedule) -> Decomposition:
        self.check(schedule, tuple(latent.shape[-2:]))
        latent = latent.float()
        return self._decomposition([self._fold(_area(latent, self._cells(size))) for size in schedule.sizes], schedule)

    def next_context(self, scales: list[Tensor], k: int, schedule: ScaleSchedule) -> Tensor:
        coarse_BChw = self.latent(scales[:k], schedule)
        size = self._cells(schedule.sizes[-1])
        full_BChw = F.interpolate(coarse_BChw, size, mode="bicubic", align_corners=False)
        return self._fold(_area(full_BChw, self._cells(schedule.sizes[k])))

    def latent(self, scales: list[Tensor], schedule: ScaleSchedule) -> Tensor:
        return self._unfold(scales[-1], schedule.sizes[len(scales) - 1])

    def _cells(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] * self.patch_size, size[1] * self.patch_size

    def _fold(self, latent_BChw: Tensor) -> Tensor:
        p = self.patch_size
        return rearrange(latent_BChw, "B C (h p) (w q) -> B (h w) (p q C)", p=p, q=p).contiguous()

    def _unfold(self, tokens_BlC: Tensor, size: tuple[int, int]) -> Tensor:
        p, (h, w) = self.patch_size, size
        return rearrange(tokens_BlC, "B (h w) (p q C) -> B C (h p) (w q)", h=h, w=w, p=p, q=p)


class DirectPyramid(LatentPyramid):
    """FlowAR's pyramid as the paper writes it: the context of scale k is Up(s, r), straight to its size (eq. 6).

    The paper's scales double, r = 2. Here the latent of scale k-1 is resized bicubically to any.
    """

    def next_context(self, scales: list[Tensor], k: int, schedule: ScaleSchedule) -> Tensor:
        coarse_BChw = self.latent(scales[:k], schedule)
        size = self._cells(schedule.sizes[k])
        return self._fold(F.interpolate(coarse_BChw, size, mode="bicubic", align_corners=False))


class ImagePyramid(LatentPyramid):
    """FlowAR with scales of smaller images: scale k is the latent of the image, averaged down to its size (table 3).

    What it takes apart are the latents of all scales in a row, cells one after the other. They are made of images:
    shards of latents hold only those of full size.
    """

    def moments(self, tokenizer: Tokenizer, image_BCHW: Tensor, schedule: ScaleSchedule) -> Tensor:
        """(B, M, cells of all scales, 1)."""
        scales = []
        for height, width in map(self._cells, schedule.sizes):
            smaller_BCHW = _area(image_BCHW, (height * tokenizer.stride, width * tokenizer.stride))
            scales.append(tokenizer.moments(smaller_BCHW).flatten(2))
        return torch.cat(scales, dim=2)[..., None]

    def build(self, latent: Tensor, schedule: ScaleSchedule) -> Decomposition:
        counts = [length * self.patch_size**2 for length in schedule.lengths]
        if latent.shape[-2:] != (sum(counts), 1):
            raise ValueError(
                f"ImagePyramid makes scales {schedule} of images, and cannot of a latent of "
                f"{latent.shape[-2]}x{latent.shape[-1]} cells: set data.latents_dir to null"
            )
        latents = [
            latent_BCl1.unflatten(2, self._cells(size)).squeeze(-1)
            for latent_BCl1, size in zip(latent.float().split(counts, dim=2), schedule.sizes, strict=True)
        ]
        return self._decomposition([self._fold(latent_BChw) for latent_BChw in latents], schedule)


class CodeQuantizer(Protocol):
    """What FlexVAR's pyramid needs of a quantizer; see `scalear.tokenizers.quantizer`."""

    num_codes: int

    def codes(self, latent: Tensor) -> Tensor:
        """latent_BChw -> nearest codes (B, h*w) int64, row by row."""

    def embed(self, content: Tensor, size: tuple[int, int]) -> Tensor:
        """Codes (B, l) int64 or weights of codes (B, l, V) -> latent_BChw, float32."""


class SumQuantizer(Protocol):
    """What VAR's pyramid needs of a quantizer; see `scalear.tokenizers.residual`."""

    num_codes: int
    latent_channels: int

    def encode(self, latent: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """latent_BChw -> codes (B, l_k) int64 of each scale, each of what the coarser ones left over."""

    def add(self, f_hat: Tensor, content: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """The sum f_hat_BChw of scales 0..k-1, with the content of scale k added."""


class CodePyramid(Pyramid):
    """FlexVAR's pyramid: every scale is quantized on its own (ground-truth prediction, paper section 3.4).

    The target of scale k are the codes of the latent, area-averaged to its size. The context of scale k are the
    code vectors of scale k-1, resized bicubically to scale k (official `encode_var_wo_firstL`). No scale depends on
    how many others there are, so any list of scales will do, also one that ends below the latent's size.

    Args:
        tokenizer: With one codebook for all sizes.
        below: Train on lists that end below the latent's size, as the official code does on 512 px crops; without it
            such a list is taken for a mistake.

    Attributes:
        scales_freely: What the tokenizer's own `scales_freely` must be; None where any codebook will do.
    """

    scales_freely: bool | None = True

    def __init__(self, tokenizer: Tokenizer, below: bool = False) -> None:
        self.quantizer: CodeQuantizer = _quantizer(tokenizer, self.scales_freely, self, "VectorQuantizer")
        self.content = Content(tokenizer.latent_channels, self.quantizer.num_codes)
        self.below = below

    def check(self, schedule: ScaleSchedule, size: tuple[int, int]) -> None:
        """Refuse scales that are not those of a latent of `size` (h, w).

        Raises:
            ValueError: The schedule ends above the latent's size, or unasked below it.
        """
        largest = schedule.sizes[-1]
        if largest[0] > size[0] or largest[1] > size[1]:
            raise ValueError(
                f"scales {schedule} end at {schedule.names[-1]} tokens, but the latent has only {size[0]}x{size[1]}: "
                "take larger images or shorter scales"
            )
        if not self.below:
            schedule.require_final(size)

    def build(self, latent: Tensor, schedule: ScaleSchedule) -> Decomposition:
        targets = [self.quantizer.codes(_area(latent.float(), size)) for size in schedule.sizes]
        return self._decomposition(targets, schedule)

    def next_context(self, scales: list[Tensor], k: int, schedule: ScaleSchedule) -> Tensor:
        """From codes, or weights of codes."""
        coarse_BChw = self.quantizer.embed(scales[k - 1], schedule.sizes[k - 1])
        return _tokens(F.interpolate(coarse_BChw, schedule.sizes[k], mode="bicubic", align_corners=False))

    def latent(self, scales: list[Tensor], schedule: ScaleSchedule) -> Tensor:
        """The quantized latent_BChw that scales 0, 1 ... of the schedule stand for: the last of them."""
        return self.quantizer.embed(scales[-1], schedule.sizes[len(scales) - 1])


class ForcedCodePyramid(CodePyramid):
    """Ground-truth prediction with any codebook, also that of a residual tokenizer (FlexVAR, table 4).

    Each scale holds the codes nearest to the latent, averaged to its size, which residual codes were not trained for:
    that they fail is what the paper shows.
    """

    scales_freely = None


class ResidualPyramid(Pyramid):
    """VAR's pyramid: every scale holds the codes of what the coarser ones left over (VAR section 3.2).

    The context of scale k is the sum of scales 0..k-1 at full size, area-averaged to scale k.

    Args:
        tokenizer: With residual codes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.quantizer: SumQuantizer = _quantizer(tokenizer, False, self, "ResidualQuantizer")
        self.content = Content(tokenizer.latent_channels, self.quantizer.num_codes)

    def check(self, schedule: ScaleSchedule, size: tuple[int, int]) -> None:
        """Refuse scales that a latent of `size` (h, w) cannot be taken apart into.

        Raises:
            ValueError: The schedule does not end at the latent's size.
        """
        schedule.require_final(size)

    def build(self, latent: Tensor, schedule: ScaleSchedule) -> Decomposition:
        self.check(schedule, tuple(latent.shape[-2:]))
        return self._decomposition(self.quantizer.encode(latent.float(), schedule), schedule)

    def _contexts(self, targets: list[Tensor], schedule: ScaleSchedule) -> Iterator[Tensor]:
        # One sum that grows, where `next_context` would begin anew at every scale.
        for size, f_hat in zip(schedule.sizes[1:], self._sums(targets, schedule), strict=False):
            yield _tokens(_area(f_hat, size))

    def next_context(self, scales: list[Tensor], k: int, schedule: ScaleSchedule) -> Tensor:
        """From codes, or weights of codes."""
        *_, f_hat = self._sums(scales[:k], schedule)
        return _tokens(_area(f_hat, schedule.sizes[k]))

    def latent(self, scales: list[Tensor], schedule: ScaleSchedule) -> Tensor:
        """The latent_BChw of full size that scales 0, 1 ... of the schedule sum up to."""
        *_, f_hat = self._sums(scales, schedule)
        return f_hat

    def _sums(self, scales: list[Tensor], schedule: ScaleSchedule) -> Iterator[Tensor]:
        """f_hat_BChw after each scale, in the same order of additions for training and sampling."""
        shape = len(scales[0]), self.quantizer.latent_channels, *schedule.sizes[-1]
        f_hat = torch.zeros(shape, device=scales[0].device)
        for k, content in enumerate(scales):
            f_hat = self.quantizer.add(f_hat, content, k, schedule)
            yield f_hat


def _quantizer(tokenizer: Tokenizer, freely: bool | None, pyramid: Pyramid, wanted: str) -> Any:
    """The tokenizer's quantizer.

    Raises:
        ValueError: It has none, or another kind.
    """
    quantizer = tokenizer.quantizer
    if quantizer is None or freely not in (None, tokenizer.scales_freely):
        found = "has no codebook" if quantizer is None else f"has a {type(quantizer).__name__}"
        raise ValueError(
            f"{type(pyramid).__name__} needs a tokenizer whose bottleneck is a {wanted}, but this one {found}: take a "
            f"tokenizer with {wanted}, or the pyramid that goes with this one"
        )
    return quantizer


def join(scales: list[Tensor]) -> Tensor:
    """Per-scale (B, l_k, C) to one (B, L, C)."""
    return torch.cat(scales, dim=1)


def _area(latent_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    return latent_BChw if latent_BChw.shape[-2:] == size else F.adaptive_avg_pool2d(latent_BChw, size)


def _tokens(latent_BChw: Tensor) -> Tensor:
    return rearrange(latent_BChw, "B C h w -> B (h w) C").contiguous()
