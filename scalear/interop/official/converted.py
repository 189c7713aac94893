"""Converted models as files: our tensors, who they belong to, and what is needed for the way back."""

import json
from pathlib import Path

import scalear
from scalear.interop.hub.pretrained import ScaleARModel
from scalear.interop.official.convert import Conversion
from scalear.interop.official.families import family_named
from scalear.models.generator import Generator
from scalear.models.weights import generator_metadata
from scalear.tensor_files import CARRIED, read_tensors, write_tensors
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.weights import tokenizer_metadata


def save_conversion(conversion: Conversion, path: str | Path) -> None:
    """Write a file that tokenizers and generators take as `weights`."""
    model = conversion.model()
    metadata = {
        "class_path": conversion.config["class_path"],
        "init_args": json.dumps(conversion.config["init_args"]),
        "scalear_version": scalear.__version__,
    }
    if isinstance(model, Tokenizer):
        metadata |= tokenizer_metadata(model)
    elif isinstance(model, Generator):
        metadata |= generator_metadata(model)
    official = {"family": conversion.family, "keys": conversion.official_keys, "constants": conversion.constants}
    metadata["official"] = json.dumps(official)
    carried = {CARRIED + key: tensor for key, tensor in conversion.carried.items()}
    write_tensors(path, conversion.tensors | carried, metadata)


def load_conversion(path: str | Path, family: str | None = None) -> Conversion:
    """Read what `save_conversion`, training or `scalear export` wrote.

    Args:
        path: The file; or the folder of an exported model, of which `family` names a part.
        family: Of what was not converted from an official file.

    Raises:
        ValueError: The file is missing, damaged or of another library, or of an unknown or another family.
    """
    path = Path(path)
    if path.is_dir():
        return _load_exported(path, family)
    tensors, metadata = read_tensors(path, carried=True)
    if "class_path" not in metadata or "init_args" not in metadata:
        raise ValueError(f"{path} does not say what model it holds: only what scalear wrote can be reversed")
    official = json.loads(metadata.get("official", "{}"))
    found = official.get("family", family)
    if found is None:
        raise ValueError(f"{path} was not converted from an official file: say with --family what it shall become")
    if family not in (None, found):
        raise ValueError(f"{path} was converted from the family {found}, not {family}")
    return Conversion(
        family=found,
        config={"class_path": metadata["class_path"], "init_args": json.loads(metadata["init_args"])},
        tensors={name: tensor for name, tensor in tensors.items() if not name.startswith(CARRIED)},
        official_keys=official.get("keys", []),
        constants=official.get("constants", []),
        carried={name.removeprefix(CARRIED): t for name, t in tensors.items() if name.startswith(CARRIED)},
    )


def _load_exported(folder: Path, family: str | None) -> Conversion:
    """One part of a `ScaleARModel`'s folder."""
    if family is None:
        raise ValueError(f"{folder} holds a generator and a tokenizer: say which with --family")
    part = family_named(family).part
    model = ScaleARModel.from_pretrained(folder)
    parts = {"generator": (model.generator_part, model.model.generator)}
    parts["tokenizer"] = (model.tokenizer_part, model.model.tokenizer)
    if part not in parts:
        raise ValueError(f"{folder} has a generator and a tokenizer, but no {part} of the family {family}")
    config, module = parts[part]
    return Conversion(family=family, config=config, tensors=dict(module.state_dict()))
