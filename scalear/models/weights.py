"""Weights of generators in files, and starting from them: as they are, or with other classes or scales."""

import json
from pathlib import Path

from torch import nn

from scalear.models.generator import Generator
from scalear.tensor_files import read_tensors

_CLASSES = "transformer.class_embedding.weight"


def generator_metadata(generator: Generator) -> dict[str, str]:
    """What a generator's file must say beside its weights, because shapes do not tell."""
    return {
        "num_classes": str(generator.num_classes),
        "scales": str(generator.schedule),
        "num_heads": json.dumps(_num_heads(generator)),
    }


def load_generator(generator: Generator, path: str | Path, fine_tune: bool) -> str:
    """Read weights that `scalear convert` wrote.

    Args:
        generator: Of the same architecture; the number of classes and the scales may be others.
        path: The file.
        fine_tune: Whether training follows. Only then may tables of other classes and scales keep their fresh values.

    Returns:
        A line that says what was read, and what was not.

    Raises:
        ValueError: The file is missing, damaged, or of another architecture; says how they differ.
    """
    tensors, metadata = read_tensors(path)
    if not generator_metadata(generator).keys() <= metadata.keys():
        raise ValueError(
            f"{path} holds no generator of scalear: convert the official checkpoint with `scalear convert`"
        )
    fresh = _fresh(generator, metadata)
    if fresh and not fine_tune:
        raise ValueError(
            f"{path} does not fit: {'; '.join(fresh.values())}. Take those of the file, or fine-tune first"
        )
    own = generator.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [
        f"{key} (file {tuple(tensors[key].shape)}, model {tuple(tensor.shape)})"
        for key, tensor in own.items()
        if key in tensors and key not in fresh and tensors[key].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{path} is of another architecture than the config; they differ in {', '.join(wrong)}")
    heads = json.loads(metadata["num_heads"])
    if heads != _num_heads(generator):
        raise ValueError(f"{path} was made with num_heads {heads}, the config has {_num_heads(generator)}")
    generator.load_state_dict({key: tensor for key, tensor in tensors.items() if key not in fresh}, strict=False)
    read = f"read {len(own) - len(fresh)} of {len(own)} tensors from {path}"
    return read + "".join(f"; {key} is re-initialised: {reason}" for key, reason in fresh.items())


def _fresh(generator: Generator, metadata: dict[str, str]) -> dict[str, str]:
    """Keys whose values in the file mean something else, and why."""
    fresh = {}
    if metadata["num_classes"] != str(generator.num_classes):
        fresh[_CLASSES] = f"{metadata['num_classes']} classes in the file, {generator.num_classes} in the config"
    if metadata["scales"] != str(generator.schedule):
        reason = f"scales {metadata['scales']} in the file, {generator.schedule} in the config"
        for index, positions in enumerate(generator.transformer.positions):
            if not positions.scalable:
                fresh |= {f"transformer.positions.{index}.{name}": reason for name in _tables(positions)}
    return fresh


def _tables(positions: nn.Module) -> list[str]:
    """Parameters that depend on the schedule; the start vector belongs to the class token of any."""
    return [name for name, _ in positions.named_parameters() if name != "start"]


def _num_heads(generator: Generator) -> list[int]:
    return [module.num_heads for module in generator.modules() if hasattr(module, "num_heads")]
