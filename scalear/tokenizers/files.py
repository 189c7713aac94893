"""Tokenizers as files: one `.safetensors` with weights, statistics and the architecture they belong to."""

import inspect
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import scalear
from scalear.tensor_files import read_tensors, write_tensors
from scalear.tokenizers.base import Tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write weights and statistics, and who they belong to, in one step: a killed run leaves no half file."""
    write_tensors(path, tokenizer.state_dict(), tokenizer_metadata(tokenizer))


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, str]:
    """Who the weights belong to: the text of a tokenizer's file."""
    return {
        "class_path": _class_path(type(tokenizer)),
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
    try:
        tokenizer.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {_class_path(type(tokenizer))}: {error}") from error


def open_tokenizer(path: str | Path, kinds: Sequence[type[Tokenizer]]) -> Tokenizer:
    """The tokenizer, with its weights, that a file holds.

    Args:
        path: A file of `save_tokenizer`.
        kinds: Classes that it may be of; each takes `weights`.

    Raises:
        ValueError: The file is missing, damaged, or of another class.
    """
    _, metadata = read_tensors(path)
    names = {_class_path(kind): kind for kind in kinds}
    if metadata.get("class_path") not in names:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{path} must hold a {wanted}, but it holds {metadata.get('class_path', 'no tokenizer')}")
    tokenizer = names[metadata["class_path"]](**json.loads(metadata["init_args"]), weights=str(path))
    tokenizer.load_weights()
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
            f"{path} has another encoder or decoder than {_class_path(type(tokenizer))} in the config: {len(misfits)} "
            f"tensors are missing or have another shape, such as {misfits[0]}. Align channels, channel_multipliers, "
            "num_res_blocks and feature_channels, or convert official files with `scalear convert` first"
        )
    tokenizer.load_state_dict({name: tensors[name] for name in own if name not in fresh}, strict=False)
    return fresh


def architecture(tokenizer: Tokenizer) -> dict:
    """Constructor arguments but the source of the weights; each is an attribute of the same name, a plain value."""
    names = [name for name in inspect.signature(type(tokenizer)).parameters if name != "weights"]
    return json.loads(json.dumps({name: getattr(tokenizer, name) for name in names}))


def _class_path(kind: type[Tokenizer]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _differences(tokenizer: Tokenizer, metadata: dict[str, str]) -> dict[str, str]:
    """What differs between the file and the config, by the name of the argument."""
    if metadata["class_path"] != _class_path(type(tokenizer)):
        return {
            "class_path": f"class {metadata['class_path']} in the file, {_class_path(type(tokenizer))} in the config"
        }
    in_file, in_config = json.loads(metadata["init_args"]), architecture(tokenizer)
    return {
        name: f"{name} is {in_file.get(name)!r} in the file, {in_config.get(name)!r} in the config"
        for name in sorted(in_file.keys() | in_config.keys())
        if in_file.get(name) != in_config.get(name)
    }
