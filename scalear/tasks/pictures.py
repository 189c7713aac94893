"""What `scalear pictures` draws: what a generator of any scale can do, as `flexible.png` and `editing.png`.

Legend: B batch, C image channels, H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from scalear.draws import SeededDraws
from scalear.evaluation.image_set import ShardSet
from scalear.evaluation.images import make_grid, save_png, to_uint8
from scalear.files import check_new_file
from scalear.hardware.precision import AUTO, Precision
from scalear.scales import ScaleSchedule
from scalear.schedules import continue_schedule, make_schedule
from scalear.tasks.editing import Editor

_PICTURES = ("flexible.png", "editing.png")
_STEPS = (0.375, 0.5, 0.625, 0.75)  # of the tokens per side: 6, 8, 10 and 12 at side 16, as in the paper's figure 13
_RESOLUTIONS = (1.0, 1.5, 2.0)  # 256, 384 and 512 px, as in the paper's figure 15
_ASPECT_RATIOS = ((1.0, 1.5), (1.0, 2.0), (2.0, 1.0))  # height and width over those of training


@dataclass(kw_only=True)
class PictureRequest:
    """Draw what a generator of any scale can do: flexible.png and editing.png.

    Raises:
        ValueError: A picture is there already, or would show nothing.
    """

    output_dir: str
    """Gets the two pictures."""
    image_dir: str | None = None
    """Dataset whose first validation images are edited, and whose labels are sampled; by default the report's."""
    num_images: int = 10
    """Images per row."""
    seed: int = 0
    """Of all that is made up."""
    precision: Precision = AUTO
    """Of matrix products; `auto` is the fastest here."""
    force: bool = False
    """Replace pictures that are there."""

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"--num_images must be at least 1, got {self.num_images}")
        for name in _PICTURES:
            check_new_file(Path(self.output_dir, name), self.force)


Row = tuple[str, NDArray[np.uint8]]


def flexible_schedules(trained: ScaleSchedule) -> list[ScaleSchedule]:
    """Lists of four numbers of steps, three resolutions and three aspect ratios, from the one of training."""
    height, width = trained.sizes[-1]
    longest = max(height, width)
    steps = [min(max(2, round(share * longest)), longest) for share in _STEPS]
    lists = [make_schedule((height, width), number) for number in steps]
    sizes = [(round(factor * height), round(factor * width)) for factor in _RESOLUTIONS]
    lists += [continue_schedule(trained, size) for size in sizes]
    shapes = [(round(tall * height), round(wide * width)) for tall, wide in _ASPECT_RATIOS]
    return lists + [make_schedule(shape, min(trained.num_scales, max(shape))) for shape in shapes]


def draw_pictures(request: PictureRequest, editor: Editor) -> None:
    """Carry out a request.

    Raises:
        ValueError: `image_dir` is no dataset of images, or has too few.
    """
    if request.image_dir is None:
        raise ValueError("the config has no report, which would name a dataset: give --image_dir")
    images = ShardSet(request.image_dir, "val", request.num_images).load()
    order, device = np.argsort(images.labels, kind="stable"), editor.model.device
    image_BCHW = torch.from_numpy(images.images[order]).permute(0, 3, 1, 2).to(device) / 127.5 - 1
    label_B = torch.from_numpy(images.labels[order]).to(device)
    flexible, editing = (Path(request.output_dir, name) for name in _PICTURES)
    with editor.model.autocast(request.precision):
        save_png(flexible, flexible_picture(editor, label_B, request.seed))
        save_png(editing, editing_picture(editor, image_BCHW, label_B, request.seed))
    print(f"Wrote {flexible} and {editing}")


@torch.no_grad()
def flexible_picture(editor: Editor, label_B: Tensor, seed: int = 0) -> NDArray[np.uint8]:
    """Images of the given labels with the same seeds, one row for each of `flexible_schedules`, uint8 (H, W, C)."""
    model = editor.model
    scale = _scale(model.image_size()[0])
    rows, schedules = [], flexible_schedules(model.schedule)
    for schedule in schedules:
        model.check(schedule)  # the last one, too, before the first is sampled
    for schedule in schedules:
        draws = SeededDraws.of_images(seed, range(len(label_B)), label_B.device)
        image_BCHW = model.sample(label_B, draws, schedule)
        height, width = model.image_size(schedule)
        caption = f"{schedule.num_scales} steps, {height}x{width} pixels: scales {schedule}"
        rows.append((caption, _grid(image_BCHW, len(label_B), scale)))
    return _stack(rows)


def editing_picture(editor: Editor, image_BCHW: Tensor, label_B: Tensor, seed: int = 0) -> NDArray[np.uint8]:
    """The four edits of the same images; each as a row of inputs, of masks and of results, uint8 (H, W, C)."""
    (height, width), stride = image_BCHW.shape[-2:], editor.tokenizer.stride
    middle = (..., slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    hole_B1HW = torch.zeros_like(image_BCHW[:, :1])
    hole_B1HW[middle] = 1
    around_B1HW = torch.ones_like(hole_B1HW)
    around_B1HW[..., : width // 2] = 0

    def draws() -> SeededDraws:
        return SeededDraws.of_images(seed, range(len(label_B)), image_BCHW.device)

    small = tuple(max(1, side // 2) * stride for side in editor.tokenizer.latent_size((height, width)))
    corner = (0, width // 2 // stride * stride)
    edits = {
        "in-painting": editor.inpaint(image_BCHW, hole_B1HW, label_B, draws()),
        "out-painting": editor.inpaint(image_BCHW, around_B1HW, label_B, draws()),
        "refinement": editor.refine(F.adaptive_avg_pool2d(image_BCHW, small), label_B, draws(), (height, width)),
        "extension": editor.extend(image_BCHW, label_B, draws(), (height, 2 * width), corner),
    }
    rows = []
    for name, edit in edits.items():
        caption = f"{name}: input, mask, result; PSNR of what is kept {edit.psnr_B.mean():.1f} dB"
        images = torch.cat([edit.given_BCHW, edit.mask(), edit.image_BCHW])
        rows.append((caption, _grid(images, len(label_B), _scale(height))))
    return _stack(rows)


def _scale(pixels: int) -> int:
    return max(1, 64 // pixels)


def _grid(image_BCHW: Tensor, columns: int, scale: int) -> NDArray[np.uint8]:
    return make_grid(to_uint8(image_BCHW), columns, scale=scale, background=128)


def _stack(rows: list[Row]) -> NDArray[np.uint8]:
    """Captioned pictures of different widths, one below the other, on white."""
    line = 16
    width = max(picture.shape[1] for _, picture in rows)
    canvas = Image.new("RGB", (width, sum(picture.shape[0] + line for _, picture in rows)), "white")
    pen, top = ImageDraw.Draw(canvas), 0
    for caption, picture in rows:
        pen.text((4, top + 2), caption, fill="black")
        colours = np.broadcast_to(picture, (*picture.shape[:2], 3))
        canvas.paste(Image.fromarray(np.ascontiguousarray(colours)), (0, top + line))
        top += line + picture.shape[0]
    return np.asarray(canvas)
