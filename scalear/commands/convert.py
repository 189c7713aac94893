"""`scalear convert`: official checkpoints to files of ours, and back."""

from pathlib import Path
from typing import Literal

import torch

from scalear.class_paths import Part
from scalear.commands.typed.parser import function_parser
from scalear.files import atomic_file, check_new_file
from scalear.idle_settings import refuse_idle
from scalear.interop.official.convert import convert_state, revert_state
from scalear.interop.official.converted import load_conversion, save_conversion
from scalear.interop.official.families import FAMILIES, family_named, pick
from scalear.interop.official.reading import read_official
from scalear.yaml_files import read_yaml

_Family = Literal[*FAMILIES]


def convert(
    source: str | Path,
    output: str | Path,
    family: _Family | None = None,
    config: str | Path | None = None,
    reverse: bool = False,
    force: bool = False,
    raw: bool = False,
) -> str:
    """Turn an official checkpoint into a file of ours, or one of ours back; gives the report.

    Args:
        source: Official checkpoint, PyTorch or safetensors; with `reverse` a file of ours.
        output: File to write.
        family: Which official model it is; recognised from keys and shapes if not given.
        config: YAML file for what shapes do not tell: arguments of the official constructor, or a config of ours,
            whose model the file must then fit.
        reverse: Write the official state dict, bit by bit what it was.
        force: Replace an output file that is there.
        raw: Take raw weights where a checkpoint also has averaged ones (EMA).

    Raises:
        ValueError: A file is missing, damaged or in the way; or the weights do not fit. Nothing is written then.
    """
    source, output = Path(source), Path(output)
    check_new_file(output, force)
    if reverse:
        refuse_idle(convert, "with reverse the source says all", config=config, raw=raw)
        conversion = load_conversion(source, family)
        official = revert_state(conversion)
        _save_official(official, output)
        return f"{conversion.title()}\nwritten     {output}, {len(official)} official keys"
    place, chosen, state = pick(read_official(source), family, averaged=not raw)
    conversion = convert_state(state, chosen.name, **_read_config(config, chosen.name))
    save_conversion(conversion, output)
    return f"source      {source}{f', {place}' if place else ''}\n{conversion.report()}\nwritten     {output}"


def _save_official(state: dict[str, torch.Tensor], path: Path) -> None:
    with atomic_file(path) as file:
        torch.save(state, file)


def _read_config(path: str | Path | None, family: str) -> dict:
    """Keyword arguments of `convert_state` that a config file stands for."""
    if path is None:
        return {}
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold official constructor arguments as `name: value`, or a config of ours")
    return {"config": _part_of(str(path), family)} if "model" in content else {"arguments": content}


def _part_of(path: str, family: str) -> Part:
    """What a config of ours has in the place of a checkpoint of this family."""
    # Here, for it takes seconds, and few conversions need it.
    from scalear.commands.run import PartsOnly
    from scalear.interop.hub.pretrained import generator_part

    wanted = family_named(family).part
    with torch.device("meta"):
        parts = PartsOnly(["-c", path])
    parts._dump_config()
    given, module = parts.config_dump["model"]["init_args"], parts.config_init.model
    if wanted == "tokenizer" and "tokenizer" in given:
        part = given["tokenizer"]
        return {**part, "init_args": {key: value for key, value in part["init_args"].items() if key != "weights"}}
    if wanted == "generator" and "transformer" in given:
        return generator_part(given, module.model)
    raise ValueError(f"{path} describes no {wanted}, which a {family} checkpoint is")


def run(args: list[str]) -> None:
    """Carry out `scalear convert ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = function_parser(convert, "scalear convert", as_positional=True)
    print(convert(**parser.parse_args(args[1:])))
