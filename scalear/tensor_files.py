"""Tensors as `.safetensors` files: written in one step, read with messages that say what is wrong."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scalear.files import atomic_path

# Begins the names of tensors that are no weights, but must be kept to give an official file back bit by bit.
CARRIED = "official."


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any device, and text that belongs to them."""
    with atomic_path(path) as partial:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, dict(metadata)
        )


def read_tensors(path: str | Path, carried: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text of a file.

    Args:
        path: The file.
        carried: Also give the tensors that are kept for the way back to an official file alone.

    Raises:
        ValueError: The file is missing or damaged.
    """
    with _opened(path) as file:
        names = [name for name in file.keys() if carried or not name.startswith(CARRIED)]
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text of a file, without its tensors; errors as `read_tensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: str | Path) -> Iterator[safe_open]:
    if not Path(path).is_file():
        raise ValueError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}): copy or export it again, or convert an official "
            "checkpoint with `scalear convert`"
        ) from error
