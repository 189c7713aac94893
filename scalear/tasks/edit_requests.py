"""`scalear edit`: an image file in; the edited image, a contact sheet and the PSNR of what was kept out.

Legend: B batch (of one), C image channels, H W pixels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scalear.data.decoding import open_image
from scalear.data.imaging import standardise
from scalear.draws import SeededDraws
from scalear.evaluation.images import make_grid, save_png, to_uint8
from scalear.files import check_new_file
from scalear.hardware.precision import AUTO, Precision
from scalear.idle_settings import refuse_idle
from scalear.scales import ScaleSchedule
from scalear.tasks.editing import Edit, Editor


@dataclass(kw_only=True)
class EditRequest(ABC):
    """Files and settings that all edits share.

    Raises:
        ValueError: `out` cannot be written, or is there already.
    """

    image: str
    """Image file; its sides are multiples of the tokenizer's stride."""
    label: int
    """Class of the image; the number of classes itself stands for none."""
    out: str
    """PNG file for the result; NAME-sheet.png beside it shows input, mask and result."""
    mask: str | None = None
    """Image file of the same size: white where pixels are made up, black where they stay."""
    scales: str | None = None
    """Scales to generate, as in 1,2,4,4x8 or 512px-12; by default as many as the generator was built for."""
    threshold: float = 0.5
    """A token of any scale is generated where the mask covers more than this share of it, else forced."""
    seed: int = 0
    """Of what is made up."""
    precision: Precision = AUTO
    """Of matrix products; `auto` is the fastest here."""
    force: bool = False
    """Replace files that are there."""

    def __post_init__(self) -> None:
        if self.files[0].suffix.lower() != ".png":
            raise ValueError(f"--out {self.out} must end in .png")
        for file in self.files:
            check_new_file(file, self.force)

    @property
    def files(self) -> tuple[Path, Path]:
        """The result, and the sheet beside it."""
        out = Path(self.out)
        return out, out.with_name(f"{out.stem}-sheet.png")

    @abstractmethod
    def apply(self, editor: Editor, given: "_Given") -> Edit:
        """Edit the image as this request says."""

    def pasted(self) -> bool:
        """Whether the known pixels themselves replace their reconstruction in the result."""
        return False


@dataclass(kw_only=True)
class InpaintRequest(EditRequest):
    """Make up what the mask covers, such as a hole in the image."""

    mask: str = field()
    """Image file of the same size: white where pixels are made up, black where they stay."""
    paste: bool = False
    """Put the known pixels themselves into the result."""

    def apply(self, editor: Editor, given: "_Given") -> Edit:
        return editor.inpaint(given.image_BCHW, given.mask_B1HW, given.label_B, given.draws, given.schedule)

    def pasted(self) -> bool:
        return self.paste


@dataclass(kw_only=True)
class OutpaintRequest(InpaintRequest):
    """Make up what the mask covers: all around what is kept."""


@dataclass(kw_only=True)
class RefineRequest(EditRequest):
    """Make a larger image of a small one."""

    size: str | None = None
    """Size of the result as HEIGHTxWIDTH; by default twice the image's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is None:
            refuse_idle(RefineRequest, "without a mask all of the image is known", threshold=self.threshold)

    def apply(self, editor: Editor, given: "_Given") -> Edit:
        height, width = given.image_BCHW.shape[-2:]
        size = (2 * height, 2 * width) if self.size is None else parse_size(self.size)
        return editor.refine(given.image_BCHW, given.label_B, given.draws, size, given.mask_B1HW, given.schedule)


@dataclass(kw_only=True)
class ExtendRequest(EditRequest):
    """Make up a larger canvas around the image, of another aspect ratio for example."""

    size: str
    """Size of the canvas as HEIGHTxWIDTH."""
    place: str = "center"
    """Where the image lies: center, left, right, top, bottom, or the ROW,COLUMN of its upper left corner."""
    paste: bool = False
    """Put the known pixels themselves into the result."""

    def apply(self, editor: Editor, given: "_Given") -> Edit:
        size, (height, width) = parse_size(self.size), given.image_BCHW.shape[-2:]
        corner = parse_place(self.place, (size[0] - height, size[1] - width), editor.tokenizer.stride)
        return editor.extend(
            given.image_BCHW, given.label_B, given.draws, size, corner, given.mask_B1HW, given.schedule
        )

    def pasted(self) -> bool:
        return self.paste


EDITS: dict[str, type[EditRequest]] = {
    "inpaint": InpaintRequest,
    "outpaint": OutpaintRequest,
    "refine": RefineRequest,
    "extend": ExtendRequest,
}


@dataclass
class _Given:
    """What a request's files and numbers stand for."""

    image_BCHW: Tensor
    mask_B1HW: Tensor | None
    label_B: Tensor
    draws: SeededDraws
    schedule: ScaleSchedule | None

    @classmethod
    def read(cls, request: EditRequest, channels: int, device: torch.device) -> "_Given":
        mask_B1HW = None if request.mask is None else (read_image(request.mask, 1) > 0).to(device)
        return cls(
            read_image(request.image, channels).to(device),
            mask_B1HW,
            torch.tensor([request.label], device=device),
            SeededDraws.of_images(request.seed, [0], device),
            None if request.scales is None else ScaleSchedule.parse(request.scales),
        )


def edit_file(request: EditRequest, editor: Editor) -> Edit:
    """Carry out a request: write its files and print the PSNR of what was kept.

    Raises:
        ValueError: A file is missing or no image, or the edit is impossible; see `Editor`.
    """
    given = _Given.read(request, editor.tokenizer.image_channels, editor.model.device)
    with editor.model.autocast(request.precision):
        edit = request.apply(editor, given)
    result_BCHW = edit.pasted() if request.pasted() else edit.image_BCHW
    out, sheet = request.files
    save_png(out, to_uint8(result_BCHW)[0].permute(1, 2, 0).cpu().numpy())
    cells = to_uint8(torch.cat([edit.given_BCHW, edit.mask(), result_BCHW]))
    save_png(sheet, make_grid(cells, columns=3, scale=max(1, 128 // cells.shape[-2]), background=128))
    print(f"kept region: PSNR {edit.psnr_B.item():.2f} dB against plain reconstruction (nothing pasted)")
    print(f"Wrote {out}, and input, mask and result in {sheet}")
    return edit


def read_image(path: str, channels: int) -> Tensor:
    """An image file as image_BCHW in [-1, 1], of one image.

    Raises:
        ValueError: There is no such image.
    """
    try:
        array = np.atleast_3d(np.asarray(standardise(open_image(Path(path).read_bytes()), channels)))
    except FileNotFoundError:
        raise ValueError(f"there is no image {path}") from None
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None] / 127.5 - 1


def parse_size(text: str) -> tuple[int, int]:
    """Pixels (H, W) of "HxW".

    Raises:
        ValueError: It is written otherwise.
    """
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--size {text!r} is not a size: write HEIGHTxWIDTH in pixels, such as 32x64")
    return int(sides[0]), int(sides[1])


def parse_place(text: str, free: tuple[int, int], stride: int) -> tuple[int, int]:
    """Upper left corner (row, column) of an image with `free` rows and columns of pixels around it.

    Raises:
        ValueError: `text` is neither the name of a place nor a corner.
    """
    rows, columns = free
    middle_row, middle_column = (side // 2 // stride * stride for side in free)
    places = {
        "center": (middle_row, middle_column),
        "left": (middle_row, 0),
        "right": (middle_row, columns),
        "top": (0, middle_column),
        "bottom": (rows, middle_column),
    }
    if text in places:
        return places[text]
    sides = text.split(",")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise ValueError(f"--place {text!r} is not a place: write one of {', '.join(places)}, or ROW,COLUMN in pixels")
    return int(sides[0]), int(sides[1])
