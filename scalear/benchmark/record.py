"""What benchmarks leave behind: `--json FILE` writes a list of records."""

from dataclasses import asdict, dataclass, field

from scalear.files import write_json


@dataclass(kw_only=True)
class Record:
    """How fast something was, and where: the head of every record.

    Attributes:
        work_tflop: Per image; None where it was not counted.
        yardstick_tflops: TFLOP/s of a matrix product around the job.
        fraction: work / (seconds x yardstick).
        parts: Share of each part of the model in the time.
    """

    job: str
    config: str
    batch: int
    threads: int
    precision: str
    machine: str
    seconds_per_image: float
    work_tflop: float | None = None
    work_source: str = "none"
    yardstick_tflops: float
    fraction: float | None = None
    peak_rss_bytes: int | None = None
    parts: dict[str, float] = field(default_factory=dict)


def save_records(name: str | None, records: list[Record]) -> None:
    """Write the file of `--json`, if one was asked for."""
    if name is not None:
        write_json(name, [asdict(record) for record in records])
