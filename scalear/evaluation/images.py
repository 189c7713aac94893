"""Images as 8-bit arrays: grids, PNG files and sample sets in ADM's layout.

No file is ever half written: a killed run leaves the old one or the new one.
"""

import itertools
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scalear.files import atomic_file

_PADDING = 2  # pixels of a grid between images and around them, before they are enlarged


def to_uint8(image: Tensor) -> Tensor:
    """image_BCHW in [-1, 1] -> uint8 of the same shape, rounded to the nearest level and clamped.

    Raises:
        ValueError: A value is not finite; casting it would make up a pixel.
    """
    if not torch.isfinite(image).all():
        raise ValueError("images hold NaN or infinite values; they cannot be written as pixels")
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def make_grid(
    images: Tensor | NDArray[np.uint8],
    columns: int | None = None,
    scale: int = 1,
    background: int = 255,
) -> NDArray[np.uint8]:
    """Lay images out row by row on one canvas.

    Args:
        images: uint8, as a tensor (B, C, H, W) or an array (B, H, W, C); grey or RGB.
        columns: Images per row; by default the smallest near-square grid.
        scale: Whole number that every pixel is enlarged by, so that 32-pixel images can be seen.
        background: Grey level between and around images, and of unused cells.

    Returns:
        uint8 array (H, W, C).
    """
    array = images.permute(0, 2, 3, 1).cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or len(array) == 0:
        raise ValueError(
            f"a grid needs uint8 images, grey or RGB, got {array.dtype} of shape {array.shape}; see to_uint8"
        )
    if scale < 1 or (columns is not None and columns < 1):
        raise ValueError(f"need scale >= 1 and columns >= 1, got {scale} and {columns}")
    count, height, width, channels = array.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    cell_height, cell_width = height + _PADDING, width + _PADDING
    grid = np.full((rows * cell_height + _PADDING, columns * cell_width + _PADDING, channels), background, np.uint8)
    for place, image in enumerate(array):
        top, left = place // columns * cell_height + _PADDING, place % columns * cell_width + _PADDING
        grid[top : top + height, left : left + width] = image
    return grid.repeat(scale, axis=0).repeat(scale, axis=1)


def save_png(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Write a uint8 array (H, W), (H, W, 1) or (H, W, 3) as PNG."""
    array = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    with atomic_file(path) as file:
        Image.fromarray(array).save(file, format="PNG")


def save_samples(path: str | Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write a sample set that is in memory: images uint8 (N, H, W, C); see `save_sample_blocks`."""
    save_sample_blocks(path, [images], labels)


def save_sample_blocks(
    path: str | Path, blocks: Iterable[NDArray[np.uint8]], labels: NDArray[np.int64], origin: str = ""
) -> None:
    """Write a sample set as `.npz`: `arr_0` uint8 (N, H, W, C), `arr_1` int64 (N,).

    Args:
        path: File to write, ending in `.npz`.
        blocks: uint8 (B, H, W, C), C = 1 or 3, whose B sum up to N; one is in memory at a time.
        labels: Class of each image.
        origin: What the samples follow from, kept beside them; see `stored_origin`.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"need one integer label per image, got {labels.dtype} of shape {labels.shape}")
    blocks = iter(blocks)
    first = next(blocks, np.empty(0))
    shape, count = (len(labels), *first.shape[1:]), 0
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for block in itertools.chain([first], blocks):
                if block.dtype != np.uint8 or block.shape[1:] != shape[1:] or shape[3:] not in ((1,), (3,)):
                    raise ValueError(
                        f"samples must be uint8 (B, H, W, 1 or 3) of one size, got {block.dtype} of {block.shape}"
                    )
                member.write(block.tobytes())
                count += len(block)
        if count != len(labels):
            raise ValueError(f"need one integer label per image, got {len(labels)} for {count} images")
        others = {"arr_1": labels.astype(np.int64)} | ({"origin": np.array(origin)} if origin else {})
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def load_samples(path: str | Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read a sample set into memory: images uint8 (N, H, W, C) and labels int64 (N,).

    Raises:
        ValueError: The file is missing, damaged or another one.
    """
    with open_sample_file(path) as archive:
        if "arr_1" not in archive:
            raise ValueError(f"{path} has no labels (arr_1)")
        try:
            return archive["arr_0"], archive["arr_1"]
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}; write it again") from error


def stored_origin(path: str | Path) -> str:
    """What a sample set says it follows from; nothing where it does not say, or cannot be read."""
    try:
        with open_sample_file(path) as archive:
            return str(archive["origin"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return ""


def open_sample_file(path: str | Path) -> np.lib.npyio.NpzFile:
    """An `.npz` file that holds images (`arr_0`), which are not read yet.

    Raises:
        ValueError: The file is missing or another one.
    """
    if not Path(path).is_file():
        raise ValueError(f"no sample set at {path}; write one with `scalear predict`")
    try:
        archive = np.load(path)
        found = sorted(archive.files)
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a sample set: {error}") from error
    if "arr_0" not in found:
        archive.close()
        raise ValueError(f"{path} is not a sample set: it has no images (arr_0), only {found}")
    return archive
