"""Folders that are there completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_free(folder: str | Path, force: bool) -> None:
    """Refuse to write where something is.

    Raises:
        ValueError: `folder` is there and not empty, and not to be replaced.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another folder")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder, or replace it with force (--force true)")


@contextmanager
def new_folder(folder: str | Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the name of `folder` when all went well.

    Args:
        folder: Where the content ends up.
        force: Replace what is there, as long as all of it is replaced: files of other names are never deleted.

    Raises:
        ValueError: `folder` must not be replaced.
    """
    folder = Path(folder).absolute()
    check_free(folder, force)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial = work / folder.name
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*.safetensors"):  # these are made for their owner alone
            path.chmod(partial.stat().st_mode & 0o666)
        if folder.exists():
            others = sorted(_names(folder) - _names(partial))
            if others:
                raise ValueError(
                    f"{folder} also holds {', '.join(others[:3])}; move them away, or choose another folder"
                )
            os.replace(folder, work / "replaced")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
