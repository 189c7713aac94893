"""YAML as configs are read, wherever it comes from. Does not import PyTorch."""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader


def parse_yaml(text: str) -> Any:
    """What a text means. By PyYAML's own rules, those of YAML 1.1, `1e-6` would be a text instead of a number.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    return get_loader("yaml")(text)


def read_yaml(path: str | Path) -> Any:
    """Content of a file.

    Raises:
        ValueError: It is missing, unreadable or not YAML.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
