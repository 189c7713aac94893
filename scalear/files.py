"""Files and folders that are there completely or not at all. Does not import PyTorch.

Everything is written under a temporary name in the same folder, forced to disk and renamed: whoever looks sees the old
content or the new one, never a part of it, whatever fails or is killed on the way.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

PARTIAL_SUFFIX = ".partial"
"""Ends the names of what is not complete; a process that is killed leaves such files behind."""


@contextmanager
def atomic_path(path: str | Path, sole_writer: bool = False) -> Iterator[Path]:
    """The name of an empty file to fill, which takes the place of `path` when all went well.

    Without an error the content is forced to disk and replaces what was at `path`; by one it is removed.

    Args:
        path: Where the file will be; its folder is made if there is none.
        sole_writer: Nobody else writes this file at the same time. Then every attempt takes the same temporary name,
            so that runs that are killed over and over leave one large file behind, not many. By default the name is
            new each time, and of several writers the last one wins.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    if _is_stream(path):
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}") if sole_writer else _new_name(path)
    try:
        with open(partial, "wb" if sole_writer else "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield partial
        if partial.stat().st_mode != mode:  # safetensors makes files for their owner alone
            partial.chmod(mode)
        _sync_file(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def atomic_file(path: str | Path, sole_writer: bool = False) -> Iterator[BinaryIO]:
    """As `atomic_path`, but the file is open for writing."""
    with atomic_path(path, sole_writer) as partial, open(partial, "wb") as file:
        yield file


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file completely or not at all; see `atomic_path`."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON for people and programs, completely or not at all; see `atomic_path`."""
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


@contextmanager
def atomic_folder(folder: str | Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` when all went well.

    Args:
        folder: Where the content ends up.
        force: Replace what is there, as long as all of it is replaced: files of other names are never deleted.

    Raises:
        ValueError: `folder` must not be replaced.
        OSError: It cannot be written.
    """
    folder = Path(folder).absolute()
    check_new_folder(folder, force)
    work = _new_name(folder)
    partial = work / folder.name  # what is written may name the folder that it lies in
    partial.mkdir(parents=True)
    try:
        yield partial
        _sync_tree(partial)
        check_new_folder(folder, force)  # somebody else may have been quicker
        if folder.exists():
            others = sorted(_names(folder) - _names(partial))
            if others:
                raise ValueError(
                    f"{folder} also holds {', '.join(others[:3])}; move them away, or choose another folder"
                )
            _swap(folder, partial, work / "replaced")
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _sync_folder(folder.parent)


def check_new_folder(folder: str | Path, force: bool) -> None:
    """Refuse to write where something is.

    Args:
        folder: Where a folder is to be made.
        force: Whether what is there may be replaced.

    Raises:
        ValueError: `folder` is a file; or it is not empty, and not to be replaced.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another folder")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder, or replace it with --force")


def check_new_file(path: str | Path, force: bool) -> None:
    """Refuse to write a file where something is.

    Args:
        path: Where a file is to be made, in a folder that may be made for it.
        force: Whether a file that is there may be replaced.

    Raises:
        ValueError: `path` is a folder; or a file, and not to be replaced; or nothing can be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file")
    if _is_stream(path):
        return
    if not force and path.exists():
        raise ValueError(f"{path} is there already: choose another place, or replace it with --force")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"{path} cannot be made, for {above} is a file: choose another place")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{path} cannot be made, for {above} cannot be written: choose another place")


def check_writable(folder: str | Path) -> None:
    """Make a folder, if it is not there, and find out whether files can be made in it.

    Raises:
        OSError: They cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = _new_name(folder / "trial")
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise OSError(f"cannot write into {folder}: {error}; choose another folder") from error


@contextmanager
def claimed(path: str | Path, what: str) -> Iterator[None]:
    """Inside, no other process has claimed this file, which stays. Who ends, however it happens, claims nothing more.

    Where the platform or the file system has no locks, nothing is claimed.

    Args:
        path: Of a file in a folder that is there.
        what: What two processes must not do at once, for the message.

    Raises:
        ValueError: Another process has claimed it.
    """
    with open(path, "a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another process {what}: wait for it, or choose another folder") from error
            except OSError:
                pass
        yield


def _is_stream(path: Path) -> bool:
    """Whether it is /dev/stdout or the like, which takes what comes, and must stay what it is."""
    return path.parent == Path("/dev") or path.is_fifo()


def _new_name(path: Path) -> Path:
    """A name that no other process takes, on whichever machine: their numbers would repeat in containers."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


def _swap(folder: Path, new: Path, aside: Path) -> None:
    """Put `new` in the place of `folder`, which ends up `aside`; by an error it stays."""
    os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(aside, folder)
        raise


def _sync_tree(folder: Path) -> None:
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
            continue
        if path.suffix == ".safetensors":  # these are made for their owner alone
            path.chmod(mode)
        _sync_file(path)
    _sync_folder(folder)


def _sync_file(path: Path) -> None:
    """Wait until a file's content is on disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the platform and the file system can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
