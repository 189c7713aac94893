"""What is measured: a job, how it is run, and the config whose parts do it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from scalear.benchmark.jobs import EncodeJob, Job, LoadJob, SampleJob, TrainJob
from scalear.benchmark.subject import Subject
from scalear.files import check_new_file
from scalear.idle_settings import refuse_idle


@dataclass
class JobOptions:
    """Time a job of any config, beside a matrix product in the same precision timed before and after each repeat.

    Raises:
        ValueError: A number is too small, or there is no place for the results.
    """

    job: Literal["train", "sample", "encode", "load"]
    """What is timed."""
    batch: int = 4
    """Images at a time."""
    decoder: Literal["in", "out"] = "in"
    """Of `sample`: go on to pixels, or stop before."""
    loader: bool = False
    """Of `train`: read batches from the config's data."""
    plain: bool = False
    """Take the plain path: `model.fast` false, PyTorch's AdamW and glibc's allocator as they are; image files."""
    baseline: bool = False
    """Compare with the plain path, in turns."""
    against: str | None = None
    """Compare with the same and these arguments, or with their `-c FILE` instead, in turns."""
    warmup: int = 1
    """Runs before those that count."""
    repeats: int = 3
    """Runs that count."""
    threads: int | None = None
    """Of PyTorch; by default its own choice."""
    device: str = "cpu"
    """Such as cpu or cuda."""
    json: str | None = None
    """File for the results."""
    force: bool = False
    """Replace the file that is there."""

    def __post_init__(self) -> None:
        if min(self.batch, self.repeats) < 1 or self.warmup < 0:
            raise ValueError(
                "--batch and --repeats must be at least 1 and --warmup at least 0, "
                f"got {self.batch}, {self.repeats} and {self.warmup}"
            )
        if self.job != "sample":
            refuse_idle(JobOptions, f"the job is {self.job}, not sample", decoder=self.decoder)
        if self.job != "train":
            refuse_idle(JobOptions, f"the job is {self.job}, not train", loader=self.loader)
        if self.json is not None:
            check_new_file(self.json, self.force)


@dataclass
class Setting:
    """One of the things compared.

    Attributes:
        options: Of the benchmark.
        config_args: Those of the config.
        label: What it is called in reports: its config, and what sets it apart from what it is compared with.
    """

    options: JobOptions
    config_args: list[str]
    label: str

    @property
    def config(self) -> str:
        """Name of the (last) config file."""
        return config_name(self.config_args)

    @property
    def device(self) -> torch.device:
        return torch.device(self.options.device)

    def job(self, subject: Subject, batch: int) -> Job:
        """The job that it names."""
        options = self.options
        match options.job:
            case "train":
                return TrainJob(subject, batch, options.loader, options.plain)
            case "sample":
                return SampleJob(subject, batch, options.decoder == "in")
            case "encode":
                return EncodeJob(subject, batch, subject.image_size())
            case "load":
                return LoadJob(subject, batch, options.plain)


def config_name(config_args: list[str]) -> str:
    """Name of the (last) config file in the arguments of a config, with its folder: imagenet256/flowar, flowar/l."""
    places = config_places(config_args)
    if not places:
        return "config"
    path = Path(config_args[places[-1] + 1])
    return f"{path.absolute().parent.name}/{path.stem}"


def config_places(args: list[str]) -> list[int]:
    """Where the flags before config files stand."""
    return [place for place, arg in enumerate(args[:-1]) if arg in ("-c", "--config")]
