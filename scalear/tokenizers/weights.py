"""Weights of tokenizers: one `.safetensors` that also holds the statistics and the architecture they belong to."""

import dataclasses
import inspect
import json
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import scalear
from scalear.class_paths import build, class_path
from scalear.tensor_files import read_tensors, write_tensors
from scalear.tokenizers.base import Tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: str | Path, step: int | None = None) -> None:
    """Write weights and statistics, and who they belong to, in one step: a killed run leaves no half file.

    Args:
        tokenizer: The weights.
        path: The file.
        step: Optimizer steps that they were trained for, if that is known.
    """
    trained = {} if step is None else {"step": str(step)}
    write_tensors(path, tokenizer.state_dict(), tokenizer_metadata(tokenizer) | trained)


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, str]:
    """Who the weights belong to: the text of a tokenizer's file."""
    return {
        "class_path": class_path(type(tokenizer)),
        "init_args": json.dumps(architecture(tokenizer)),
        "fingerprint": tokenizer.fingerprint(),
        "scalear_version": scalear.__version__,
    }


def load_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Read weights and statistics that `save_tokenizer` wrote into a tokenizer of the same architecture.

    Raises:
        ValueError: The file is missing, damaged, or of another tokenizer; says which, and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no tokenizer weights at {path}: train them with `scalear fit`, or correct `weights`")
    tensors, metadata = read_tensors(path)
    if "class_path" not in metadata or "init_args" not in metadata:
        raise ValueError(f"{path} was not written by scalear's save_tokenizer: convert it with `scalear convert`")
    differences = _differences(tokenizer, metadata)
    refused = [text for name, text in differences.items() if name not in tokenizer.not_in_weights]
    if refused:
        raise ValueError(f"{path} holds another tokenizer than the config: {'; '.join(refused)}. Align the two")
    if differences:
        warnings.warn(f"{path} is used otherwise than it was trained: {'; '.join(differences.values())}", stacklevel=2)
    _take(tokenizer, tensors, path)


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer, with its weights, that a file of `save_tokenizer` or `scalear convert` holds.

    Raises:
        ValueError: The file is missing, damaged, or holds no tokenizer.
    """
    tensors, metadata = read_tensors(path)
    if "class_path" not in metadata or "init_args" not in metadata:
        raise ValueError(f"{path} holds no tokenizer of scalear: give a file that `scalear fit` exported")
    tokenizer = build(Tokenizer, {"class_path": metadata["class_path"], "init_args": json.loads(metadata["init_args"])})
    _take(tokenizer, tensors, path)
    return tokenizer


def begin_from(tokenizer: Tokenizer, path: str | Path) -> list[str]:
    """Take from another tokenizer's file, for training, what has the same name and shape; the rest stays as it is.

    Returns:
        Names of the tensors that were not taken.

    Raises:
        ValueError: The file is missing or damaged, or its encoder or decoder does not fit.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"no weights at {path} to begin from: convert official ones with `scalear convert`, or set begin_from to "
            "null"
        )
    tensors, _ = read_tensors(path)
    own = tokenizer.state_dict()
    fresh = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    misfits = [name for name in fresh if name.startswith(("encoder.", "decoder."))]
    if misfits:
        raise ValueError(
            f"{path} has another encoder or decoder than tokenizer.shape in the config: {len(misfits)} tensors are "
            f"missing or have another shape, such as {misfits[0]}. Align channels, channel_multipliers, "
            "num_res_blocks, feature_channels and decoder_attention, or convert official files with `scalear convert` "
            "first"
        )
    tokenizer.load_state_dict({name: tensors[name] for name in own if name not in fresh}, strict=False)
    return fresh


def architecture(tokenizer: Tokenizer) -> dict[str, Any]:
    """Constructor arguments but the source of the weights, as a config has them.

    Each is an attribute of the same name: a plain value, a dataclass, or a module that is such a part in turn.
    """
    return json.loads(json.dumps(_arguments(tokenizer, tokenizer.weight_arguments), default=_part))


def _arguments(part: object, without: Collection[str] = ()) -> dict[str, Any]:
    names = inspect.signature(type(part)).parameters
    return {name: getattr(part, name) for name in names if name not in without}


def _part(value: object) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    assert isinstance(value, nn.Module), f"{value!r} cannot be written into a file"
    return {"class_path": class_path(type(value)), "init_args": _arguments(value)}


def _take(tokenizer: Tokenizer, tensors: dict[str, Tensor], path: str | Path) -> None:
    try:
        tokenizer.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {class_path(type(tokenizer))}: {error}") from error


def _differences(tokenizer: Tokenizer, metadata: dict[str, str]) -> dict[str, str]:
    """What differs between the file and the config, by the name of the argument."""
    in_file = {"class_path": metadata["class_path"]} | dict(_flat(json.loads(metadata["init_args"])))
    in_config = {"class_path": class_path(type(tokenizer))} | dict(_flat(architecture(tokenizer)))
    differing = {name for name in in_file | in_config if in_file.get(name) != in_config.get(name)}
    for kind in [name for name in differing if name.endswith("class_path")]:
        # Another class has other arguments, which say nothing more.
        differing -= {name for name in differing if name != kind and name.startswith(kind.removesuffix("class_path"))}
    return {
        name: f"{name} is {in_file.get(name)!r} in the file, {in_config.get(name)!r} in the config"
        for name in sorted(differing)
    }


def _flat(arguments: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Arguments by the name that they are typed with, such as `shape.channels`."""
    for name, value in arguments.items():
        if isinstance(value, dict) and "class_path" in value:
            yield f"{prefix}{name}.class_path", value["class_path"]
            yield from _flat(value["init_args"], f"{prefix}{name}.")
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
