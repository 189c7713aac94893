"""Trees of image files: which files are images, which folders are splits, and how classes are numbered."""

import logging
import os
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

from PIL import Image

_log = logging.getLogger(__name__)

SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val")
"""What folders and files of a split are called, in small letters, and how we call it."""

_NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # which Pillow knows, but does not decode by itself
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders that lie among those of users


def find_images(root: str) -> dict[str, str]:
    """Paths of all images below `root`, sorted, and the folder of each relative to it, with slashes.

    Raises:
        ValueError: There is none.
    """
    if not os.path.isdir(root):
        raise ValueError(f"{root} is not a folder; give the root of a tree of images")
    formats = Image.registered_extensions()  # which fills Image.OPEN, too
    known = {suffix for suffix, format in formats.items() if format in Image.OPEN and format not in _NO_PICTURES}
    found, ignored = [], []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not _leads_back(Path(folder, name))]
        for name in names:
            path = Path(folder, name).relative_to(root)
            visible = not any(part.startswith(".") or part in _OF_SYSTEMS for part in path.parts)
            (found if visible and path.suffix.lower() in known else ignored).append(path.as_posix())
    if ignored:
        what = "files that are hidden or that Pillow does not open"
        _log.warning("%s: left out %d %s, such as %s", root, len(ignored), what, min(ignored))
    if not found:
        raise ValueError(f"{root} holds no images; Pillow here opens {', '.join(sorted(known))}")
    return {os.path.join(root, path): path.rpartition("/")[0] for path in sorted(found)}


def files_of_splits(root: str, files: dict[str, str]) -> dict[str, dict[str, str]]:
    """Files of each split, with their class folders, if all lie in folders of splits at one depth; else none.

    Args:
        root: For error messages.
        files: As `find_images` gives them.

    Raises:
        ValueError: Splits lie right in the root, but not alone.
    """
    trees = [folder.split("/") for folder in files.values()]
    for depth in range(min(map(len, trees))):
        names = {tree[depth].lower() for tree in trees}
        splits = {name: split for name in names if (split := _split_called(name))}
        found = set(splits.values())
        if "train" not in found:
            continue
        if len(found) == len(names) and (depth == 0 or len(names) > 1):
            # What stands above the splits is part of the class, unless it is the same for all.
            above = 0 if len({tuple(tree[:depth]) for tree in trees}) > 1 else depth
            made = {split: {} for split in ("train", "val", "test") if split in found}
            for path, tree in zip(files, trees, strict=True):
                made[splits[tree[depth].lower()]][path] = "/".join(tree[above:depth] + tree[depth + 1 :])
            return made
        if depth == 0 and len(found) > 1:
            raise ValueError(
                f"{root} holds the splits {sorted(splits)} beside other images or folders: pack the one to train on as "
                "source.root with a source.val_root, or move the others away"
            )
    return {}


def in_class_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their labels: sorted, but numbers, also as parts of a path, by their value."""

    def rank(name: str) -> list[tuple[bool, Decimal, str]]:
        parts = [(part, re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", part)) for part in name.split("/")]
        return [(number is None, Decimal(part if number else 0), part) for part, number in parts]

    return sorted(names, key=rank)


def _split_called(folder: str) -> str | None:
    """The split that a folder (in small letters) is named after, as in `train`, `val2017` or `test_set`."""
    return SPLITS.get(re.sub("[^a-z]", "", folder).removesuffix("set"))


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())
