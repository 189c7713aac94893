"""Which errors are mistakes of a user, and which are faults of code."""

import argparse
import builtins
import re
import traceback
from types import FrameType

IN_PROCESS = re.compile(r"\A\s*-- Process \d+ terminated with .*\n\s.*\n([\w.]+): (.*)\Z", re.DOTALL)
"""How torch.multiprocessing tells of an error, type and message, in a process that it had started."""
_MISTAKES = (argparse.ArgumentError, ValueError, OSError, ModuleNotFoundError)
_OURS = ("scalear", "lightning")


def is_mistake(error: Exception) -> bool:
    """Whether an error is a mistake in what was typed, or of the machine, of which the message says all.

    All else is a fault of code, which only a traceback can tell: also of a user's own class, unless it says ValueError.
    What Lightning's code raises is about the settings that Lightning was given, whatever its type.
    """
    if isinstance(error, _MISTAKES):
        return True
    if failed := IN_PROCESS.search(str(error)):
        kind = getattr(builtins, failed[1], None)
        return _package(failed[1]) in _OURS if kind is None else issubclass(kind, (ValueError, OSError, RuntimeError))
    if _package(type(error).__module__) == "lightning":
        return True
    if str(error).startswith("Caught ") and not isinstance(error, RuntimeError):
        return False  # code of a DataLoader's worker, whatever raised it anew here
    raised_by = _package(_last_frame(error).f_globals["__name__"])
    return raised_by == "lightning" or (raised_by == "scalear" and isinstance(error, RuntimeError))


def of_constructor(error: Exception) -> ValueError:
    """What a constructor says of the settings that it was given; where it fails over them without a word, the place."""
    cause = error
    while cause.__cause__ is not None:  # of what jsonargparse tells of its attempts
        cause = cause.__cause__
    frame = _last_frame(cause)
    if isinstance(cause, _MISTAKES) or _package(frame.f_globals["__name__"]) in (*_OURS, "jsonargparse"):
        return ValueError(str(error))
    return ValueError(f"{type(cause).__name__} in {frame.f_code.co_filename}, line {frame.f_lineno}: {cause}")


def _package(module: str) -> str:
    return module.partition(".")[0]


def _last_frame(error: Exception) -> FrameType:
    """Where an error was raised, seen from outside PyTorch."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next(frame for frame in reversed(frames) if _package(frame.f_globals["__name__"]) != "torch")
