"""Any picture to a square 8-bit one, and to bytes."""

import io
import math
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

from scalear.data.decoding import MODES, orientation

ImageFormat = Literal["png", "jpg", "webp"]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # of EXIF orientations, so that the picture is upright
_LARGE_PIXELS = 1 << 24  # of a resized image of which only the centre is wanted


def standardise(image: Image.Image, channels: int) -> Image.Image:
    """Upright, opaque, 8 bits per channel, grey or RGB, whatever the mode of `image`.

    Transparency is laid over white. Colour profiles are ignored, as the papers' preprocessing does, except that
    LAB has no other meaning than its profile.

    Args:
        image: In any mode of Pillow.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: The value range of a 32-bit image is unknown.
    """
    if (turn := _TURNS.get(orientation(image))) is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    elif image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode == "P":  # by way of RGB: the entries of a palette are colours, also when grey is wanted
        image = image.convert("RGB")
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre crop of ADM (Dhariwal and Nichol 2021), which FID on ImageNet takes for granted.

    Halves by box filter while both sides stay at least `size`, resizes the shorter side to `size` bicubically and cuts
    out the central square. An image that has the right size already comes back unchanged.
    """
    if image.size == (size, size):
        return image
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > _LARGE_PIXELS:
        return _resized_centre(image, width, height, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def encode(image: Image.Image, format: ImageFormat, quality: int) -> bytes:
    """The bytes of an image file; `quality` is for JPEG (always 4:4:4) and WebP."""
    options = {
        "png": {"format": "PNG"},
        "jpg": {"format": "JPEG", "quality": quality, "subsampling": 0},
        "webp": {"format": "WEBP", "quality": quality},
    }[format]
    image = image.copy()
    image.info.clear()  # profiles and EXIF would otherwise be written into the file
    with io.BytesIO() as stream:
        image.save(stream, **options)
        return stream.getvalue()


def _resized_centre(image: Image.Image, width: int, height: int, size: int) -> Image.Image:
    """The central square of `image` resized to (width, height), of which a long strip would not fit into memory."""
    box, region = [], []
    for length, resized in ((image.width, width), (image.height, height)):
        first = (resized - size) // 2
        start, stop = first * length / resized, (first + size) * length / resized
        margin = 4 * max(1.0, length / resized)  # twice as far as a bicubic kernel reaches
        low, high = max(0, math.floor(start - margin)), min(length, math.ceil(stop + margin))
        region.append((low, high))
        box.append((start - low, stop - low))
    (left, right), (top, bottom) = region
    strip = image.crop((left, top, right, bottom))  # first, because Pillow keeps a box in single precision
    (x_0, x_1), (y_0, y_1) = box
    return strip.resize((size, size), Image.Resampling.BICUBIC, box=(x_0, y_0, x_1, y_1))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit integers (which Pillow may hold in 32) and floats in [0, 1] to 8-bit grey, rounded."""
    values = np.asarray(image).astype(np.float64)
    limit = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= limit):
        raise ValueError(
            f"mode {image.mode} with values in [{values.min():g}, {values.max():g}], expected [0, {limit:g}]; "
            "convert it to 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values * (255.0 / limit)).astype(np.uint8))
