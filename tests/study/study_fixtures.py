"""A study of made-up rows, whose results are made up, too."""

from pathlib import Path

import yaml

from scalear.study.plan import Study
from scalear.study.results import Identity, StudyResult

CONFIG = {
    "configs": "configs",
    "data": "data",
    "extractor": "classifier",
    "groups": {
        "tokenizers": {"images": 320, "seeds": [0]},
        "headline": {"images": 1600, "seeds": [0, 1], "samples": 100, "trials": 3, "trial_samples": 10, "speed": True},
        "ablations": {"images": 800, "seeds": [0, 1]},
    },
    "families": {"flowar": "kl", "flexvar": "vq"},
    "tokenizers": {"kl": {}, "vq": {}, "wide": {"config": "kl", "settings": {"model.tokenizer.shape.channels": 99}}},
    "rows": {
        "ablations/flowar-wide": {"overlays": [], "tokenizer": "wide", "settings": {"data.batch_size": 8}},
        "ablations/flowar-both": {"overlays": ["adaln", "dit"]},
    },
    "samplings": {
        "steps": {"of": "headline/flexvar", "samples": 50, "scales": {2: "1,8", 3: "1,4,8"}},
        "scales": {"of": "tokenizers/vq", "beside": {"KL": "kl"}},
    },
}
TABLES = {
    "All methods": {"group": "headline", "rows": {"flowar": [2.9, 272.5], "flexvar": [3.05, 291.3]}},
    "Heads": {
        "rows": {
            "flowar": [3.61, 234.1],
            "flowar-adaln": [14.28, 111.9],
            "flowar-both": None,
            "flowar-wide": float("inf"),
        },
        "orders": [["flowar", "flowar-adaln", "flowar-wide"]],
        "remark": "What we think of it.",
    },
    "Steps": {"group": "samplings", "rows": {"steps-3": None, "steps-2": None}},
    "Scales": {"group": "samplings", "rows": {"scales": None}, "orders": []},
    "Convergence": {"group": "headline", "curves": ["flowar", "flexvar"]},
}


def made_up_study(root: Path, tables: dict = TABLES, **config) -> Study:
    """Files of it are written into a folder."""
    data = {"data": {"init_args": {"batch_size": 16, "latents_dir": "somewhere"}}, "trainer": {"callbacks": ["EMA"]}}
    for name in ("kl", "vq", "flowar", "flexvar"):
        _write(root / f"configs/{name}.yaml", data)
    _write(root / "configs/flowar/adaln.yaml", {"model": "another"})
    _write(root / "configs/flowar/dit.yaml", {"data": {"init_args": {"latents_dir": None}}})
    _write(root / "study.yaml", CONFIG | {"configs": str(root / "configs")} | config)
    _write(root / "tables.yaml", tables)
    return Study(str(root / "study.yaml"), str(root / "tables.yaml"))


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def made_up(fid: float | None, *, machine: str = "A", line: str = "", **more) -> StudyResult:
    """A result with this FID."""
    numbers = {} if fid is None else {"fid": fid, "kid": fid / 100, "accuracy": 0.5}
    known = {"machines": [machine], "measured_on": machine, "parameters": 1234, "train_seconds": 60.0, "line": line}
    return StudyResult(identity=Identity("c", "d"), numbers=numbers, **known | more)
