"""A command of several stages in a folder: each is done once, recorded with its seconds, and not done again."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scalear.__main__ import INTERRUPTED, main
from scalear.files import write_json
from scalear.training.guarded_module import NonFiniteLossError

Stage = Callable[[], list[str] | None]
"""Gives the arguments of the `scalear` command that does it, once all before it is done; or does it, and gives None."""


class CommandError(RuntimeError):
    """A command failed; its message stands above."""


class DivergedError(CommandError):
    """A command met numbers that are not finite."""


def run_command(args: list[str], failure: str) -> None:
    """A `scalear` command, as if it were typed.

    Args:
        args: From the command's name on.
        failure: What an error says.

    Raises:
        CommandError: It failed.
        KeyboardInterrupt: It was stopped.
    """
    print(f"scalear {' '.join(args)}", flush=True)
    try:
        code = main(args)
    except SystemExit as end:  # by a signal: what was trained is saved
        code = end.code
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise (DivergedError if code == NonFiniteLossError.exit_code else CommandError)(failure)


class Stages:
    """The stages of a command that are done in a folder, and what they took.

    Args:
        folder: Is made. Holds NAME.json: the settings, and the seconds of the stages that are done.
        name: Of the command.
        settings: What makes another result.

    Attributes:
        seconds: Of each stage that is done.

    Raises:
        ValueError: The folder holds the work of other settings, or something else.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.folder, self.name = folder, name
        self._path = folder / f"{name}.json"
        self._settings = json.loads(json.dumps(settings))  # as they will be read
        self.seconds: dict[str, float] = self._begin()
        self._start: float | None = None  # of the stage at hand

    def carry_out(self, stages: Mapping[str, Stage]) -> None:
        """All that are not done yet, in their order.

        Args:
            stages: By name.

        Raises:
            CommandError: A command failed.
            KeyboardInterrupt: One was stopped.
        """
        for number, (name, stage) in enumerate(stages.items(), start=1):
            place = f"[{number}/{len(stages)}] {name}:"
            if name in self.seconds:
                print(f"{place} done already", flush=True)
                continue
            self._start = time.perf_counter()
            print(f"\n{place}", flush=True)
            args = stage()
            if args is not None:
                run_command(args, f"the {self.name} stopped at stage {number}, {name}")
            self.seconds[name] = round(time.perf_counter() - self._start, 1)
            self._start = None
            self._write()

    def spent(self) -> float:
        """Seconds of all stages that are done, and of the one at hand."""
        at_hand = 0.0 if self._start is None else time.perf_counter() - self._start
        return sum(self.seconds.values()) + at_hand

    def _begin(self) -> dict[str, float]:
        """Claim the folder, or find out what of it is done."""
        if self._path.exists():
            record = json.loads(self._path.read_text())
            differing = [name for name, value in self._settings.items() if record["settings"].get(name) != value]
            if not differing:
                return record["seconds"]
            why = f"holds an earlier {self.name}, which differs in {' and '.join(differing)}"
        else:
            why = f"holds something else than a {self.name}, or one without {self._path.name}"
        # One that was refused before it made anything has left its record alone.
        if not self.folder.exists() or (self.folder.is_dir() and {*self.folder.iterdir()} <= {self._path}):
            self.seconds = {}
            self._write()
            return {}
        raise ValueError(f"{self.folder} {why}: choose another --output_dir, or move it away")

    def _write(self) -> None:
        write_json(self._path, {"settings": self._settings, "seconds": self.seconds})
