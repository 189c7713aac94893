"""Entry point: `scalear COMMAND ...` or `python -m scalear COMMAND ...`."""

import argparse
import os
import shlex
import sys
from importlib import import_module
from importlib.metadata import version

from scalear.commands.typed.messages import message_of
from scalear.commands.typed.mistakes import is_mistake
from scalear.fast.allocator import keep_memory
from scalear.hardware.cpus import respect_container

# Each command, the module of `scalear.commands` that carries it out, and what it does.
_COMMANDS = {
    "fit": ("run", "train a tokenizer, a generator or a classifier:  scalear fit -c configs/fashion/flowar.yaml"),
    "validate": ("run", "its validation losses or reconstruction metrics"),
    "test": ("run", "sample and measure (generator), or measure reconstructions (tokenizer)"),
    "predict": ("run", "sample chosen labels (generator), or cache latents (tokenizer)"),
    "evaluate": ("evaluate", "measure any samples against any reference:  scalear evaluate SAMPLES --reference R"),
    "stats": ("stats", "write a dataset's statistics, for evaluate to compare with"),
    "export": ("export", "take a trained generator out of its run, as a folder to share:  docs/interop.md"),
    "edit": ("edit", "in-paint, out-paint, refine or extend an image:  scalear edit inpaint --help"),
    "pictures": ("pictures", "draw what a generator of any scale can do: flexible.png and editing.png"),
    "app": ("app", "a page to play with a trained generator:  scalear app --run runs/demo/flowar"),
    "board": ("board", "watch runs in a browser: TensorBoard, open on what matters"),
    "convert": ("convert", "official FlowAR, FlexVAR, VAR and tokenizer checkpoints to files of ours, and back"),
    "data": ("data", "pack, verify and describe datasets of tar shards"),
    "tune": ("tune", "search guidance, and steps or temperature and top-p, for a metric:  docs/evaluation.md"),
    "benchmark": (
        "benchmark",
        "time training, sampling, encoding or loading of a config, and its memory; compare flow solvers",
    ),
    "try": ("try_pictures", "your own pictures in one command:  scalear try ~/pictures --minutes 20"),
    "study": ("study", "the experiments of the papers' tables at a laptop's size, in pieces:  docs/study.md"),
    "demo": ("demo", "tokenizer, latents, generator, samples and numbers in one go, as `make demo` does"),
}

_HELP = f"""\
usage: scalear COMMAND [options]      (scalear COMMAND --help lists the options; scalear --version)

{"".join(f"  {name:<11}{what}{chr(10)}" for name, (_, what) in _COMMANDS.items())}
Any option of a config can be typed instead, as in --trainer.max_steps 1000; --print_config shows them all.
SCALEAR_TRACEBACK=1 shows where an error comes from.
"""


INTERRUPTED = 130  # as shells have it


def main(args: list[str] | None = None) -> int:
    """Run a command; returns the exit code. Mistakes of the user end in one message, not in a traceback.

    Args:
        args: Of the command. By default those of this process, which may then be started anew (`keep_memory`).
    """
    given = args is not None
    args = args if given else sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if args[0] in ("-V", "--version"):
        print(f"scalear {version('scalear')}")
        return 0
    if not given and sys.orig_argv[-len(args) :] == args:  # a script may have set sys.argv, and would lose it
        keep_memory()
    respect_container()
    try:
        _run(args)
    except Exception as error:
        if os.environ.get("SCALEAR_TRACEBACK") or not is_mistake(error):
            raise
        print(f"scalear: error: {message_of(error)}", file=sys.stderr)
        if isinstance(error, argparse.ArgumentError):
            print(f"scalear {args[0]} --help lists the options", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning has said so, and exits with 1
            return INTERRUPTED
        raise
    return 0


def _run(args: list[str]) -> None:
    command = next((arg for arg in args if arg in _COMMANDS), None)
    if args[0].startswith("-") and command:
        others = list(args)
        others.remove(command)
        raise ValueError(f"the command comes first: scalear {command} {shlex.join(others)}")
    if args[0] not in _COMMANDS:
        raise ValueError(f"there is no command {args[0]!r}; see scalear --help")
    module, _ = _COMMANDS[args[0]]
    # Imported here, so that help and mistakes do not wait for torch, and no command for another.
    import_module(f"scalear.commands.{module}").run(args)


if __name__ == "__main__":
    sys.exit(main())
