"""YAML as configs are read and recorded, wherever it comes from. Does not import PyTorch."""

from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

# Defaults of Lightning's classes are members where their settings are texts, and the record of a run names them all.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def parse_yaml(text: str) -> Any:
    """What a text means. By PyYAML's own rules, those of YAML 1.1, `1e-6` would be a text instead of a number.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    return get_loader("yaml")(text)


def to_yaml(content: Any) -> str:
    """The text that means this, with names in the order given."""
    return yaml.safe_dump(content, sort_keys=False)


def read_yaml(path: str | Path) -> Any:
    """Content of a file.

    Raises:
        ValueError: It is missing, unreadable or not YAML.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
