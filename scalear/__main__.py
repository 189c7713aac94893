"""Entry point: `scalear COMMAND ...` or `python -m scalear COMMAND ...`."""

import argparse
import os
import re
import sys

from scalear.fast.allocator import keep_memory
from scalear.hardware.cpus import respect_container

_HELP = """\
usage: scalear COMMAND [options]      (scalear COMMAND --help lists the options)

  fit        train a tokenizer, a generator or a classifier:  scalear fit -c configs/fashion/flowar.yaml
  validate   its validation losses or reconstruction metrics
  test       sample and measure (generator), or measure reconstructions (tokenizer)
  predict    sample chosen labels (generator), or cache latents (tokenizer)
  export     take a trained generator out of its run, as a folder to share:  docs/interop.md
  edit       in-paint, out-paint, refine or extend an image:  scalear edit inpaint --help
  pictures   draw what a generator of any scale can do: flexible.png and editing.png
  convert    official FlowAR, FlexVAR, VAR and tokenizer checkpoints to files of ours, and back
  data       pack, verify and describe datasets of tar shards
  benchmark  time training, sampling, encoding or loading of a config, and its memory; compare flow solvers
  demo       tokenizer, latents, generator, samples and numbers in one go, as `make demo` does

Any option of a config can be typed instead, as in --trainer.max_steps 1000; --print_config shows them all.
SCALEAR_TRACEBACK=1 shows where an error comes from.
"""


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
    if not given and sys.orig_argv[-len(args) :] == args:  # a script may have set sys.argv, and would lose it
        keep_memory()
    respect_container()
    try:
        _run(args[0], args[1:])
    except (argparse.ArgumentError, ValueError, OSError, RuntimeError) as error:
        if os.environ.get("SCALEAR_TRACEBACK"):
            raise
        print(f"scalear: error: {_message(error)}", file=sys.stderr)
        if isinstance(error, argparse.ArgumentError):
            print(f"scalear {args[0]} --help lists the options", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return 130
    return 0


def _run(command: str, args: list[str]) -> None:
    # Imported here, so that help and mistakes do not wait for torch.
    if command in ("fit", "validate", "test", "predict"):
        from scalear.cli import ScalearCLI

        ScalearCLI([command, *args])
    elif command == "export":
        from scalear.cli import run_export

        run_export(args)
    elif command == "edit":
        from scalear.cli import run_edit

        run_edit(args)
    elif command == "pictures":
        from scalear.cli import run_pictures

        run_pictures(args)
    elif command == "convert":
        from scalear.interop.command import run_convert

        run_convert(args)
    elif command == "data":
        from scalear.cli import run_data

        run_data(args)
    elif command == "benchmark":
        from scalear.benchmark.command import run_benchmark
        from scalear.cli import build_subject
        from scalear.training.checkpoints import load_weights

        run_benchmark(args, build_subject, load_weights)
    elif command == "demo":
        from scalear.demo import run_demo

        run_demo(args)
    else:
        raise ValueError(f"there is no command {command!r}; see scalear --help")


def _message(error: BaseException) -> str:
    """What went wrong, without what jsonargparse and DataLoader workers wrap around it."""
    text = _meant(str(error)) or type(error).__name__
    if text.startswith("Caught ") and "\n" in text:
        name = text.split()[1]
        return text.rsplit(f"{name}: ", 1)[-1].strip()
    return re.sub(r'^Parser key "([\w.]+)":\s+', r"\1: ", _in_words_of_the_user(text))


def _in_words_of_the_user(text: str) -> str:
    """Missing arguments by the names that are typed: without their command, and the config for what it holds."""
    missing = re.match(r"the following arguments are required: (.+)", text)
    if not missing:
        return text
    names = [name.split(".", 1)[-1] for name in missing[1].split(", ")]
    typed = dict.fromkeys("config (-c)" if name in ("model", "data") else name for name in names)
    return f"these arguments are missing: {', '.join(typed)}"


def _meant(text: str) -> str:
    """Of the alternatives that jsonargparse tried for a part, each with its error, the error of the one meant."""
    key = ""
    while listed := re.search(r"^( *)Errors:\n((?:\1 .*\n?|\n)+)", text, re.MULTILINE):
        key = (re.findall(r'Parser key "(\w+)":', text[: listed.start()]) or [key])[-1]
        indent, errors = listed.groups()
        alternatives = [error.strip() for error in re.split(rf"^{indent}  - ", errors, flags=re.MULTILINE) if error]
        own = [error for error in alternatives if "Errors:" in error or not any(words in error for words in _OF_OTHERS)]
        text = (own or alternatives)[0]
    return f"{key}: {text}" if text.startswith("Expected a ") else text


# How alternatives fail that are not meant.
_OF_OTHERS = ("is not accepted", "unexpected keyword argument", "Expected a <class 'NoneType'>")


if __name__ == "__main__":
    sys.exit(main())
