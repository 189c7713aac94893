"""What is asked of `scalear benchmark`: its options, and the job that they and a config name."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from scalear.benchmark.jobs import EncodeJob, Job, LoadJob, SampleJob, TrainJob
from scalear.benchmark.subject import Subject

_DESCRIPTION = """\
Time a job of any config, beside a matrix product in the same precision timed before and after each repeat (the
yardstick): fraction = work per image / (seconds per image x yardstick). What is not listed below goes to the config, as
in `scalear fit`: -c FILE, --model.sampling.num_steps 8 ... But for --trainer.precision, which must be typed: otherwise
the fastest one here is taken, whatever the config says. Models have random weights.

`scalear benchmark solver` compares solvers of a trained flow head and has options of its own: add --help to see them.
"""


def own_parser() -> argparse.ArgumentParser:
    """Options of `scalear benchmark`; those of the config are parsed elsewhere."""
    parser = argparse.ArgumentParser(
        "scalear benchmark",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "job", choices=("train", "sample", "encode", "load"), metavar="{train,sample,encode,load,solver}"
    )
    parser.add_argument("--batch", type=int, default=4, help="images at a time")
    parser.add_argument("--decoder", choices=("in", "out"), default="in", help="sample: go on to pixels or stop before")
    parser.add_argument("--loader", action="store_true", help="train: read batches from the config's data")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="take the plain path: eager, dense masks, PyTorch's AdamW and glibc's allocator as they are; image files",
    )
    parser.add_argument("--baseline", action="store_true", help="compare with the plain path, in turns")
    parser.add_argument(
        "--against",
        metavar="ARGS",
        help="compare with the same and these arguments, or with their -c FILE instead, in turns",
    )
    parser.add_argument("--warmup", type=int, default=1, help="runs before those that count")
    parser.add_argument("--repeats", type=int, default=3, help="runs that count")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", metavar="FILE", type=json_file, help="write the results there")
    return parser


def json_file(text: str) -> Path:
    """Refuse what could not be written once the results are there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} for {path.name}: make it first")
    return path


@dataclass
class Setting:
    """One of the things compared.

    Attributes:
        own: Options of the benchmark.
        config_args: Those of the config.
        label: What it is called in reports: its config, and what sets it apart from what it is compared with.
    """

    own: argparse.Namespace
    config_args: list[str]
    label: str

    @classmethod
    def parse(cls, args: list[str], note: str = "") -> "Setting":
        """Split the arguments of the benchmark from those of the config; `note` goes into the label."""
        own, config_args = own_parser().parse_known_args(args)
        if min(own.batch, own.repeats) < 1 or own.warmup < 0:
            raise ValueError(
                "--batch and --repeats must be at least 1 and --warmup at least 0, "
                f"got {own.batch}, {own.repeats} and {own.warmup}"
            )
        note = "plain" if own.plain and not note else note
        label = config_name(config_args) + (f" ({note})" if note else "")
        return cls(own, config_args, label)

    @property
    def config(self) -> str:
        """Name of the (last) config file."""
        return config_name(self.config_args)

    @property
    def device(self) -> torch.device:
        return torch.device(self.own.device)

    def job(self, subject: Subject, batch: int) -> Job:
        """The job that it names."""
        own = self.own
        match own.job:
            case "train":
                return TrainJob(subject, batch, own.loader, own.plain)
            case "sample":
                return SampleJob(subject, batch, own.decoder == "in")
            case "encode":
                return EncodeJob(subject, batch, subject.image_size())
            case "load":
                return LoadJob(subject, batch, own.plain)


def config_name(config_args: list[str]) -> str:
    """Name of the (last) config file in the arguments of a config."""
    places = config_places(config_args)
    return Path(config_args[places[-1] + 1]).stem if places else "config"


def config_places(args: list[str]) -> list[int]:
    """Where the flags before config files stand."""
    return [place for place, arg in enumerate(args[:-1]) if arg in ("-c", "--config")]


def split_configs(args: list[str]) -> tuple[list[str], list[str]]:
    """Config files with their flags, and all other arguments."""
    places = [part for place in config_places(args) for part in (place, place + 1)]
    return [args[place] for place in places], [arg for place, arg in enumerate(args) if place not in places]
