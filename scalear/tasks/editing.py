"""Zero-shot editing with FlexVAR (section 4.4): known tokens are forced at every scale, the others are generated.

Legend: B batch, C channels of image or latent, H W pixels, h w the latent.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scalear.draws import Draws
from scalear.guidance import Guidance
from scalear.image_model import ImageModel
from scalear.pyramid import CodePyramid
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule
from scalear.schedules import continue_schedule, make_schedule
from scalear.tasks.forcing import known_codes
from scalear.tokenizers.base import Tokenizer


@dataclass
class Edit:
    """An edited image.

    Attributes:
        image_BCHW: The result in [-1, 1], nothing pasted.
        given_BCHW: What was given, at its place; grey where nothing was. After refinement enlarged.
        missing_B1HW: True where pixels were to be made up.
        psnr_B: Of the kept region against the tokenizer's plain reconstruction of what was given, in dB. A refined
            image is averaged down for it.
    """

    image_BCHW: Tensor
    given_BCHW: Tensor
    missing_B1HW: Tensor
    psnr_B: Tensor

    def pasted(self) -> Tensor:
        """The result with the known pixels themselves, image_BCHW."""
        return torch.where(self.missing_B1HW, self.image_BCHW, self.given_BCHW)

    def mask(self) -> Tensor:
        """White where pixels were made up, black elsewhere, image_BCHW."""
        return (self.missing_B1HW.float() * 2 - 1).expand_as(self.image_BCHW)


@dataclass
class Editor:
    """A model of codes at any scales, and what all its edits have in common. Masks are 1 where pixels are made up.

    Attributes:
        model: FlexVAR.
        threshold: A cell of any scale is generated where more than this share of it is missing, else forced.
        guidance: Instead of the model's own.
        sampling: Instead of the model's own.

    Raises:
        ValueError: The model is of another kind, or the threshold out of range.
    """

    model: ImageModel
    threshold: float = 0.5
    guidance: Guidance | None = None
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model.pyramid, CodePyramid):
            raise ValueError(
                "editing needs a generator whose scales stand each for itself, FlexVAR with its CodePyramid; this one "
                f"has a {type(self.model.pyramid).__name__}: use a FlexVAR config and checkpoint"
            )
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), got {self.threshold}: it is a share of a cell")

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    def inpaint(
        self,
        image_BCHW: Tensor,
        mask_B1HW: Tensor,
        label_B: Tensor,
        draws: Draws,
        schedule: ScaleSchedule | None = None,
    ) -> Edit:
        """Make up what the mask covers: a hole in the image, or for out-painting all around what is kept.

        Args:
            image_BCHW: In [-1, 1].
            mask_B1HW: 1 where pixels are made up, 0 where they stay.
            label_B: Class of each image; `num_classes` for none.
            draws: Random numbers of each image.
            schedule: Scales up to the image's token map; by default the generator's, or as many for other sizes.

        Raises:
            ValueError: Mask and image do not match, the mask is empty or full, the stride does not divide a side,
                the schedule does not end at the image, or a label is out of range.
        """
        return self._edit(image_BCHW, mask_B1HW, label_B, draws, _size(image_BCHW), (0, 0), _size(image_BCHW), schedule)

    def extend(
        self,
        image_BCHW: Tensor,
        label_B: Tensor,
        draws: Draws,
        size: tuple[int, int],
        corner: tuple[int, int],
        mask_B1HW: Tensor | None = None,
        schedule: ScaleSchedule | None = None,
    ) -> Edit:
        """Make up a canvas of `size` (H, W) around the image, whose upper left pixel is the canvas's `corner`.

        Other arguments are those of `inpaint`; the schedule ends at the canvas's token map.

        Raises:
            ValueError: As `inpaint`; or the image does not lie on the canvas, or between tokens.
        """
        return self._edit(image_BCHW, mask_B1HW, label_B, draws, size, corner, size, schedule)

    def refine(
        self,
        image_BCHW: Tensor,
        label_B: Tensor,
        draws: Draws,
        size: tuple[int, int],
        mask_B1HW: Tensor | None = None,
        schedule: ScaleSchedule | None = None,
    ) -> Edit:
        """Make an image of `size` (H, W) of a smaller one, whose scales are forced, while all finer ones are generated.

        Other arguments are those of `inpaint`; the schedule ends at the token map of `size`, and by default continues
        that of the small image. What is forced are averages of the latent of the image enlarged to `size`: the encoder
        then sees things as large as in training, where coarse scales are averages, too.

        Raises:
            ValueError: As `inpaint`; or `size` is not larger.
        """
        small = _size(image_BCHW)
        if size[0] < small[0] or size[1] < small[1] or size == small:
            raise ValueError(f"refinement makes images larger: {_text(size)} is not larger than {_text(small)}")
        if schedule is None:
            finest = self.tokenizer.latent_size(size)
            schedule = continue_schedule(self.schedule(self.tokenizer.latent_size(small)), finest)
        return self._edit(image_BCHW, mask_B1HW, label_B, draws, small, (0, 0), size, schedule)

    def schedule(self, tokens: tuple[int, int]) -> ScaleSchedule:
        """The generator's own scales if they end at this token map, else as many as can be for it."""
        own = self.model.schedule
        if own.sizes[-1] == tokens:
            return own
        return make_schedule(tokens, min(own.num_scales, max(tokens)))

    @torch.no_grad()
    def _edit(
        self,
        image_BCHW: Tensor,
        mask_B1HW: Tensor | None,
        label_B: Tensor,
        draws: Draws,
        canvas: tuple[int, int],
        corner: tuple[int, int],
        size: tuple[int, int],
        schedule: ScaleSchedule | None,
    ) -> Edit:
        """Force what is known of a canvas, whose scales are the coarse ones of a result of `size`, or all of them."""
        self._check(image_BCHW, mask_B1HW, label_B, canvas, corner)
        tokens = self.tokenizer.latent_size(size)
        schedule = schedule or self.schedule(tokens)
        schedule.require_final(tokens)
        self.model.check(schedule)
        place, cells = _window(corner, _size(image_BCHW), 1), _window(corner, _size(image_BCHW), self.tokenizer.stride)
        missing_B1HW = image_BCHW.new_ones(len(image_BCHW), 1, *canvas)
        missing_B1HW[place] = 0 if mask_B1HW is None else mask_B1HW.to(missing_B1HW)
        missing_B1hw = F.avg_pool2d(missing_B1HW, self.tokenizer.stride)
        refined = size != canvas
        self._check_missing(missing_B1hw, refined)

        seen_BCHW = F.interpolate(image_BCHW, size, mode="bicubic").clamp(-1, 1) if refined else image_BCHW
        own_tokens = self.tokenizer.latent_size(_size(image_BCHW))
        latent_BChw = F.adaptive_avg_pool2d(self.tokenizer.encode(seen_BCHW), own_tokens)
        canvas_BChw = latent_BChw.new_zeros(*latent_BChw.shape[:2], *missing_B1hw.shape[-2:])
        canvas_BChw[cells] = latent_BChw
        forced = known_codes(self.model.pyramid, canvas_BChw, missing_B1hw, schedule, self.threshold)
        how = {"guidance": self.guidance, "sampling": self.sampling}
        result_BCHW = self.model.sample(label_B, draws, schedule, forced=forced, **how)

        given_BCHW = image_BCHW.new_zeros(*image_BCHW.shape[:2], *canvas)
        given_BCHW[place] = image_BCHW
        kept_BCHW = F.adaptive_avg_pool2d(result_BCHW, canvas)[place]
        plain_BCHW = self.tokenizer.reconstruction(image_BCHW)
        return Edit(
            image_BCHW=result_BCHW,
            given_BCHW=F.interpolate(given_BCHW, size),
            missing_B1HW=F.interpolate(missing_B1HW, size) > 0,
            psnr_B=_psnr(kept_BCHW, plain_BCHW, missing_B1HW[place] == 0),
        )

    def _check(
        self,
        image_BCHW: Tensor,
        mask_B1HW: Tensor | None,
        label_B: Tensor,
        canvas: tuple[int, int],
        corner: tuple[int, int],
    ) -> None:
        size, stride = _size(image_BCHW), self.tokenizer.stride
        self.model.generator.check_labels(label_B)
        if image_BCHW.shape[1] != self.tokenizer.image_channels:
            raise ValueError(
                f"the image has {image_BCHW.shape[1]} channel(s), the tokenizer is for {self.tokenizer.image_channels}"
            )
        if mask_B1HW is not None and _size(mask_B1HW) != size:
            raise ValueError(
                f"the mask is {_text(_size(mask_B1HW))}, the image {_text(size)}: they must be of one size"
            )
        self.tokenizer.latent_size(size)
        if any(start < 0 or start + side > whole for start, side, whole in zip(corner, size, canvas, strict=True)):
            raise ValueError(
                f"an image of {_text(size)} with its corner at {corner[0]},{corner[1]} does not lie on a canvas of "
                f"{_text(canvas)}: take a larger canvas, or another place"
            )
        if corner[0] % stride or corner[1] % stride:
            raise ValueError(f"the corner {corner[0]},{corner[1]} is not a multiple of the tokenizer's stride {stride}")

    def _check_missing(self, missing_B1hw: Tensor, refined: bool) -> None:
        generated = (missing_B1hw > self.threshold).flatten(1)
        pixels = f"{self.tokenizer.stride}x{self.tokenizer.stride} pixels"
        if not refined and not generated.any(1).all():
            raise ValueError(
                f"nothing to make up: the mask is empty, or covers no token ({pixels}) by more than "
                f"{self.threshold:.0%}; it must be white where pixels are made up"
            )
        if generated.all(1).any():
            raise ValueError(
                f"nothing to keep: the mask is full, or covers every token ({pixels}) by more than "
                f"{self.threshold:.0%}; it must be black where pixels stay"
            )


def _size(image_BCHW: Tensor) -> tuple[int, int]:
    return image_BCHW.shape[-2], image_BCHW.shape[-1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _window(corner: tuple[int, int], size: tuple[int, int], stride: int) -> tuple:
    """Index of a rectangle of pixels in a tensor with `stride` pixels per cell."""
    parts = (slice(start // stride, (start + side) // stride) for start, side in zip(corner, size, strict=True))
    return (..., *parts)


def _psnr(image_BCHW: Tensor, other_BCHW: Tensor, where_B1HW: Tensor) -> Tensor:
    """In dB, (B,), over the chosen pixels; the range of images is 2. NaN without any."""
    square_B1HW = (image_BCHW.clamp(-1, 1) - other_BCHW.clamp(-1, 1)).square().mean(1, keepdim=True)
    mean_B = (square_B1HW * where_B1HW).flatten(1).sum(1) / where_B1HW.flatten(1).sum(1)
    return 10 * torch.log10(4 / mean_B)
