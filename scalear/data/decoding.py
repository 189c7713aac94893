"""Image files to pixels; what lies beside the pixels decides nothing."""

import contextlib
import io
import struct
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Above which Pillow takes an image for one that is made to fill the memory."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode of an image with so many channels."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def open_image(content: bytes | memoryview, max_pixels: int | None = None) -> Image.Image:
    """Decode an image file, in whatever mode it is.

    Where text, profile, EXIF or transparency are too large for Pillow or broken, the file is read without them.

    Args:
        content: Of the file.
        max_pixels: Most pixels to decode. Default: Pillow's limit, 179 million, and a warning above half of it.

    Raises:
        ValueError: There are more pixels, or it is no image.
        Exception: Whatever Pillow raises on broken bytes.
    """
    try:
        return _decode(content, max_pixels)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} If the file is to be trusted, pack it with a greater --source.max_pixels") from error
    except Exception as error:
        for bare in _without_metadata(bytes(content)):
            with contextlib.suppress(Exception):  # if that is not the reason, the first failure is the news
                return _decode(bare, max_pixels)
        if isinstance(error, UnidentifiedImageError):  # its message names an object of Python
            begin = bytes(content[:12])
            raise ValueError(f"it is no image: {len(content):,} bytes, which begin with {begin}") from error
        raise


def jpeg_pixels(content: bytes | memoryview, size: int, channels: int) -> NDArray[np.uint8] | None:
    """Pixels of an upright JPEG that needs no resizing, (H, W, channels): those that Pillow gives, in less time.

    torchvision's decoder is the same library as Pillow's, without the copies on the way to an array. It is asked only
    where PyTorch is loaded: processes that pack or verify would wait for that longer than they gain.

    Args:
        content: Of a file.
        size: Of the shorter side.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        None if the file is anything else, or broken: what it is then, Pillow must say.
    """
    if "torch" not in sys.modules or not _needs_no_pillow(content, size, channels):
        return None
    try:
        import torch
        from torchvision.io import decode_jpeg  # deprecated in 0.29: without it this is slower, and nothing else

        pixels_CHW = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except Exception:
        return None
    return pixels_CHW.permute(1, 2, 0).numpy()


def orientation(image: Image.Image) -> int:
    """What EXIF says how the picture is to be turned, 1 (as it is) to 8."""
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF can be broken in many ways; it then says nothing about the picture
        turn = None
    return turn if turn in range(1, 9) else 1


def _decode(content: bytes | memoryview, max_pixels: int | None) -> Image.Image:
    with _pixel_limit(max_pixels), Image.open(io.BytesIO(content)) as image:
        image.load()
        return image


@contextlib.contextmanager
def _pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Lets Pillow refuse what has more pixels. Its limit is one for the whole process, and holds half of the number."""
    if max_pixels is None:
        yield
        return
    usual = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = Fraction(max_pixels, 2)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _without_metadata(content: bytes) -> Iterator[bytes]:
    """The same picture with ever less of what Pillow reads, and may refuse, before it comes to the pixels.

    Of other formats nothing: there broken metadata fails only where it is asked for.
    """
    if content[4:8] == b"ftyp":  # AVIF
        yield content.replace(b"Exif", b"free")  # the type of an item: one of unknown type is passed over
    elif content.startswith(_PNG_SIGNATURE):
        yield _bare_png(content, (b"eXIf", b"tRNS"))
        yield _bare_png(content, (b"eXIf",))  # transparency that does not fit is passed over, as libpng does
    elif content.startswith(_JPEG_SIGNATURE):
        yield _bare_jpeg(content)


def _bare_png(content: bytes, also: tuple[bytes, ...]) -> bytes:
    """Only the chunks without which there is no picture (their names have a capital letter first), and some more."""
    kept, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        chunk = content[start : start + 12 + length]
        if chunk[4:5].isupper() or chunk[4:8] in also:
            kept.append(chunk)
        start += len(chunk)
    return b"".join(kept)


def _bare_jpeg(content: bytes) -> bytes:
    """Without comments and what applications add, but for EXIF, and Adobe's if it is whole, which tells colours."""
    segments = list(_segments(content))
    kept = [
        segment
        for segment in segments
        if not (0xE0 <= segment[1] <= 0xEF or segment[1] == 0xFE)
        or segment[4:8] == b"Exif"
        or (segment[4:9] == b"Adobe" and len(segment) >= 16)
    ]
    return b"".join([content[:2], *kept, content[2 + sum(map(len, segments)) :]])


def _needs_no_pillow(content: bytes | memoryview, size: int, channels: int) -> bool:
    """Whether it is a JPEG of that shorter side and so many channels, without EXIF or XMP, which may turn it."""
    if content[:3] != _JPEG_SIGNATURE:
        return False
    for segment in _segments(content):
        if segment[1] == 0xE1:
            return False
        if segment[1] in _START_OF_FRAME and len(segment) >= 10:
            _, height, width, components = struct.unpack_from(">BHHB", segment, 4)
            return (min(height, width), components) == (size, channels)
    return False


def _segments(content: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """What stands in a JPEG between its first two bytes and the pixels: FF, kind, length, content."""
    start = 2
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", content, start + 2)
        segment = content[start : start + 2 + length]
        yield segment
        start += len(segment)
