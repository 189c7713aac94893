"""What came of a row: one committed file per seed, which says what it follows from."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scalear.files import write_json
from scalear.study.plan import Study, StudyRow

METHOD = 1
"""Version of code that decides numbers and is in no config: one more makes all results out of date."""


@dataclass(frozen=True)
class Identity:
    """What a result follows from.

    Attributes:
        config: Hash of what the resolved config says of numbers, and that of the rows which it needs.
        data: Hash of the dataset, and of the network that measures.
        method: `METHOD`.
    """

    config: str
    data: str
    method: int = METHOD

    @property
    def digest(self) -> str:
        """Hash of all, for names of folders."""
        return hashlib.sha256(f"{self.config} {self.data} {self.method}".encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """Of one seed of a row.

    Attributes:
        identity: What it follows from.
        numbers: By name, of the measurement.
        line: They and their protocol, as for a paper.
        cautions: What is to be known of the numbers.
        precision: Of training and sampling.
        machines: On which kinds it was trained; more than one if it went on elsewhere.
        measured_on: Kind of machine that measured and was timed.
        parameters: That were trained.
        steps: Of the optimizer.
        train_seconds: Of all steps, without validation; None where nothing was trained.
        speed: Seconds per image at a batch of 1 and of 100, and TFLOP per image.
        settings: Of sampling, that the search found; of the first seed, for all.
        loss: Of training: steps and values, thinned.
    """

    identity: Identity
    numbers: Mapping[str, float]
    line: str = ""
    cautions: list[str] = field(default_factory=list)
    precision: str = ""
    machines: list[str] = field(default_factory=list)
    measured_on: str = ""
    parameters: int | None = None
    steps: int | None = None
    train_seconds: float | None = None
    speed: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss: list[tuple[int, float]] = field(default_factory=list)

    @property
    def has_failed(self) -> bool:
        """Training met numbers that are not finite: FID is infinite, and nothing else is known."""
        return math.isinf(self.numbers.get("fid", 0.0))

    def write(self, path: Path) -> None:
        """Completely or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "StudyResult | None":
        """None where there is none.

        Raises:
            ValueError: The file is none of a result.
        """
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            return cls(**content | {"identity": Identity(**content["identity"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no result of a study ({error}): remove it, and run the row again") from error


def result_path(folder: str | Path, row: StudyRow, seed: int) -> Path:
    """Where the result of a row lies; its sheet has the same name, and ends in .png."""
    return Path(folder, f"{row.name}-{seed}.json")


IdentityOf = Callable[[StudyRow, int], Identity]
"""What a result of a row and a seed follows from now."""


def read_results(
    folder: str | Path, study: Study, identity: IdentityOf | None = None
) -> dict[str, dict[int, StudyResult]]:
    """All that are there and not out of date, by name of the row and seed.

    Args:
        folder: Of the results.
        study: Its rows.
        identity: None where there is no dataset: then the method alone is compared.
    """
    found: dict[str, dict[int, StudyResult]] = {name: {} for name in study.rows}
    for name, row in study.rows.items():
        for seed in row.seeds:
            result = StudyResult.read(result_path(folder, row, seed))
            if result is None:
                continue
            if result.identity == identity(row, seed) if identity else result.identity.method == METHOD:
                found[name][seed] = result
    return found
