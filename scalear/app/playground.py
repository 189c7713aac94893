"""What a page can ask of a trained generator: pictures of classes and seeds, and the completion of a picture.

All that is asked is JSON that anything may have written, so every value is checked. Pictures go both ways as data URLs.

Legend: B batch, C image channels, H W pixels.
"""

import base64
import binascii
import io
import math
import reprlib
import time
from collections.abc import Iterator
from threading import Lock
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from scalear.data.decoding import open_image
from scalear.data.imaging import encode, standardise
from scalear.draws import SeededDraws
from scalear.evaluation.images import to_uint8
from scalear.hardware.precision import AUTO, Precision
from scalear.image_model import ImageModel
from scalear.pyramid import CodePyramid
from scalear.scales import ScaleSchedule
from scalear.tasks.editing import Editor
from scalear.tuning.space import Settings, is_range, usual_space

MAX_PICTURES = 36
"""That are made at once."""
MAX_PIXELS = 1 << 25
"""Of a picture that is uploaded."""
_MAX_SEED = 2**31 - 1
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = "data:image/png;base64,"

Asked = dict[str, Any]
"""A JSON object."""


class Playground:
    """A trained generator and what can be asked of it, one request at a time.

    The picture of class c and seed s is image s of the sample set that `scalear predict` makes of class c alone with
    seed 0, or `ScaleARModel.generate([c], seeds=[s])`.

    Args:
        model: In evaluation mode.
        schedule: The scales to sample; None for the model's.
        class_names: Name of each class; without, or if they are those of other classes, they are numbered.
        title: What the page calls the model.
        precision: Of matrix products.
    """

    def __init__(
        self,
        model: ImageModel,
        schedule: ScaleSchedule | None = None,
        class_names: list[str] | None = None,
        title: str = "",
        precision: Precision = AUTO,
    ) -> None:
        self.model = model
        self.schedule = schedule or model.schedule
        self.class_names = class_names or []
        if len(self.class_names) != model.num_classes:
            self.class_names = [f"class {label}" for label in range(model.num_classes)]
        self.title = title
        self.precision = precision
        self._lock = Lock()
        self._own = Settings(model.guidance, model.sampling)

    def describe(self) -> dict[str, Any]:
        """What the page has to know of the model; the class after all others stands for none."""
        return {
            "title": self.title,
            "image_size": self.model.image_size(self.schedule),
            "stride": self.model.tokenizer.stride,
            "scales": [_text(size) for size in self.schedule.sizes],
            "classes": [*self.class_names, "no class"],
            "sliders": self.sliders(),
            "completes": isinstance(self.model.pyramid, CodePyramid),
            "max_pictures": MAX_PICTURES,
        }

    def sliders(self) -> dict[str, dict[str, Any]]:
        """The numbers among the settings that `scalear tune` searches: range, the model's own value, if whole."""
        found = {}
        for name, ends in usual_space(type(self.model.sampling)).items():
            own = self._own[name]
            idle = name.startswith("model.guidance.") and not self.model.num_classes
            if is_range(ends) and isinstance(own, int | float) and not idle:
                whole = all(isinstance(number, int) for number in (*ends, own))
                found[name] = {"low": min(*ends, own), "high": max(*ends, own), "value": own, "whole": whole}
        return found

    @torch.inference_mode()
    def sample(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """Make pictures, and show them after each scale.

        Args:
            asked: `labels` and `seeds`, one of each per picture; `settings`, the sliders that were moved, if any.

        Yields:
            `pictures`, and the `seconds` that they took.

        Raises:
            ValueError: Before anything is yielded, if what is asked cannot be done.
        """
        settings = self._settings(asked)
        labels, seeds = asked.get("labels"), asked.get("seeds")
        if not isinstance(labels, list) or not isinstance(seeds, list) or len(labels) != len(seeds):
            raise ValueError("labels and seeds must be two lists, with one of each per picture")
        if not 1 <= len(labels) <= MAX_PICTURES:
            raise ValueError(f"between 1 and {MAX_PICTURES} pictures can be made at once, not {len(labels)}")
        label_B, draws = self._labels(labels), self._draws(seeds)
        with self._lock, self.model.autocast(self.precision):
            how = {"guidance": settings.guidance, "sampling": settings.sampling}
            images = self.model.sample_growing(label_B, draws, self.schedule, **how)
            start = time.perf_counter()
            for image_BCHW in images:
                pictures = _as_urls(image_BCHW)
                yield {"pictures": pictures, "seconds": time.perf_counter() - start}

    @torch.inference_mode()
    def complete(self, asked: Asked) -> dict[str, Any]:
        """Make up what a mask covers; all other pixels stay as they are.

        Args:
            asked: `picture`; `mask`, a digit for each of its pixels, row by row, 1 where it is made up and else 0;
                `label` and `seed`; `settings`, the sliders that were moved, if any.

        Returns:
            `picture`.

        Raises:
            ValueError: The model cannot do this, or not with what is given.
        """
        settings = self._settings(asked)
        editor = Editor(self.model, guidance=settings.guidance, sampling=settings.sampling)
        label_B, draws = self._labels([asked.get("label")]), self._draws([asked.get("seed")])
        image_BCHW = self._image(_from_url(asked.get("picture")))
        height, width = self.model.image_size(self.schedule)
        mask = asked.get("mask")
        if not isinstance(mask, str) or len(mask) != height * width or not set(mask) <= {"0", "1"}:
            raise ValueError(f"the mask must have a digit, 0 or 1, for each of the {height}x{width} pixels")
        mask_B1HW = torch.tensor([digit == "1" for digit in mask], device=self.model.device).view(1, 1, height, width)
        with self._lock, self.model.autocast(self.precision):
            edit = editor.inpaint(image_BCHW, mask_B1HW, label_B, draws, self.schedule)
        return {"picture": _as_urls(edit.pasted())[0]}

    def fit(self, content: bytes) -> dict[str, Any]:
        """The middle of a picture file as the model sees pictures, of its size and channels.

        Args:
            content: Of the file.

        Returns:
            `picture`.

        Raises:
            ValueError: It is no picture, or too large.
        """
        return {"picture": _as_urls(self._image(content))[0]}

    def rest(self) -> None:
        """Wait for what is being made, and make nothing more."""
        self._lock.acquire()

    def _image(self, content: bytes) -> Tensor:
        """The same as image_BCHW in [-1, 1]."""
        height, width = self.model.image_size(self.schedule)
        picture = _read(content, self.model.tokenizer.image_channels)
        fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        return pil_to_tensor(fitted)[None].to(self.model.device) / 127.5 - 1

    def _settings(self, asked: Asked) -> Settings:
        values, sliders = asked.get("settings", {}), self.sliders()
        if not isinstance(values, dict):
            raise ValueError("settings must be an object of numbers by name")
        for name, value in values.items():
            if name not in sliders:
                raise ValueError(f"there is no setting {_short(name)}; there are {', '.join(sliders) or 'none'}")
            low, high, whole = (sliders[name][part] for part in ("low", "high", "whole"))
            kind = int if whole else int | float
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                what = "whole number" if whole else "number"
                raise ValueError(f"{name} must be a {what} from {low:g} to {high:g}, got {_short(value)}")
        return self._own.changed(values)

    def _labels(self, labels: list[Any]) -> Tensor:
        last = self.model.num_classes
        return torch.tensor([_whole(label, "a class", last) for label in labels], device=self.model.device)

    def _draws(self, seeds: list[Any]) -> SeededDraws:
        return SeededDraws.of_images(0, [_whole(seed, "a seed", _MAX_SEED) for seed in seeds], self.model.device)


def _whole(value: Any, what: str, last: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= last:
        raise ValueError(f"{what} must be a whole number from 0 to {last}, got {_short(value)}")
    return value


def _read(content: bytes, channels: int) -> Image.Image:
    """A picture file of a usual kind, of which no more than the size is read before it is known to be small enough."""
    too_large = f"the picture is too large: take one of at most {MAX_PIXELS:,} pixels"
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as header:
            pixels = math.prod(header.size)
    except Image.DecompressionBombError:
        raise ValueError(too_large) from None
    except Exception:  # decoders raise nearly anything
        raise ValueError(f"this is no picture that can be read: take one of {', '.join(_FORMATS)}") from None
    if pixels > MAX_PIXELS:
        raise ValueError(too_large)
    try:
        return standardise(open_image(content), channels)
    except Exception as error:
        raise ValueError(f"the picture cannot be read: {error}") from None


def _from_url(url: Any) -> bytes:
    if not isinstance(url, str) or not url.startswith(_DATA_URL):
        raise ValueError(f"a picture must be text that begins with {_DATA_URL}")
    try:
        return base64.b64decode(url.removeprefix(_DATA_URL), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the picture is not in base64: {error}") from None


def _as_urls(image_BCHW: Tensor) -> list[str]:
    files = [encode(to_pil_image(image_CHW), "png", 0) for image_CHW in to_uint8(image_BCHW).cpu()]
    return [_DATA_URL + base64.b64encode(file).decode() for file in files]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _short(value: Any) -> str:
    return reprlib.repr(value)
