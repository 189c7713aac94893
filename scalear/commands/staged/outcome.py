"""What came of a tokenizer and a generator that were trained one after the other: one file of numbers, and a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalear.files import write_json


def write_outcome(folder: Path, tokenizer_dir: Path, generator_dir: Path, **more: Any) -> dict[str, Any]:
    """Put the numbers of two runs into metrics.json of a folder.

    Args:
        folder: Gets the file.
        tokenizer_dir: Run of the tokenizer, tested.
        generator_dir: Run of the generator, tested; of numbers with equal names, its stay.
        more: Further numbers.
    """
    reconstruction, samples = (json.loads((run / "metrics.json").read_text()) for run in (tokenizer_dir, generator_dir))
    metrics = reconstruction | samples | more
    write_json(folder / "metrics.json", metrics)
    return metrics


def table(metrics: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """Numbers for people, as far as they are known: images without classes have no accuracy.

    Args:
        metrics: As `write_outcome` gives them.
        seconds: Of each stage.
    """
    known = [(what, text.format(**metrics)) for what, names, text in _ROWS if metrics.keys() >= set(names)]
    rows = [*known, *((f"seconds: {stage}", f"{spent:.0f}") for stage, spent in seconds.items())]
    rows.append(("seconds: total", f"{sum(seconds.values()):.0f}"))
    width = max(len(what) for what, _ in rows)
    return "\n".join(f"{what:<{width}}  {value:>12}" for what, value in rows)


_ROWS = (
    ("FID of samples", ["fid"], "{fid:.3f}"),
    ("FID of real images (floor)", ["fid_floor"], "{fid_floor:.3f}"),
    ("FID of reconstructions", ["rfid"], "{rfid:.3f}"),
    ("texture (floor)", ["texture", "texture_floor"], "{texture:.2f} ({texture_floor:.2f})"),
    ("samples classified as their label", ["accuracy"], "{accuracy:.1%}"),
    ("real images classified as theirs", ["accuracy_real"], "{accuracy_real:.1%}"),
    ("recall / precision", ["recall", "precision"], "{recall:.3f} / {precision:.3f}"),
    ("variety of the least varied class", ["variety_min"], "{variety_min:.2f} of real"),
    ("distance to training images", ["nearest"], "{nearest:.2f} of real"),
)
"""What it is called, the numbers that it needs, how they are written."""
