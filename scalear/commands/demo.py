"""`scalear demo`: every stage of an experiment in one go, through the same commands that a user would type.

Train the tokenizer, test it, cache latents, train the generator, sample and measure; then one table.
"""

import functools
from pathlib import Path

from scalear.benchmark.jobs import TrainJob
from scalear.class_paths import class_path
from scalear.commands.benchmark import build_subject
from scalear.commands.run import PartsOnly
from scalear.commands.staged.outcome import table, write_outcome
from scalear.commands.staged.stages import Stage, Stages
from scalear.commands.typed.parser import add_arguments_file, function_parser
from scalear.data.index import INDEX_NAME
from scalear.hardware.machine import best_device, stopwatch
from scalear.training.performance import Forecast, minutes
from scalear.yaml_files import read_yaml


def demo(
    tokenizer: str = "configs/fashion/kl.yaml",
    generator: str = "configs/fashion/flowar.yaml",
    output_dir: str = "runs/demo",
    generator_name: str = "flowar",
    pictures: bool = False,
    seed: int = 0,
    fast: bool = False,
) -> None:
    """Train a tokenizer and a generator on the embedded data, sample and measure.

    A demo that was stopped goes on where it was; one that is finished is reported again.

    Args:
        tokenizer: Config of the tokenizer.
        generator: Config of the generator.
        output_dir: Gets one folder per model and metrics.json.
        generator_name: Name of the generator's folder.
        pictures: Also draw flexible.png and editing.png; for generators of any scale (FlexVAR).
        seed: Of weights, order, noise and samples.
        fast: A few steps and images only, to see that everything runs; the pictures are noise.

    Raises:
        RuntimeError: A stage failed; its message stands above.
        ValueError: `output_dir` holds a demo with other settings, or something else; or a config is none of a training.
    """
    folder = Path(output_dir)
    tokenizer_dir, generator_dir = folder / "tokenizer", folder / generator_name
    weights, latents = tokenizer_dir / "tokenizer.safetensors", tokenizer_dir / "latents"
    seeds = [f"--{name}={seed}" for name in ("seed_everything", "model.seed", "data.seed")]
    in_tokenizer = ["-c", tokenizer, f"--trainer.default_root_dir={tokenizer_dir}", *seeds]
    in_generator = [
        *("-c", generator, f"--trainer.default_root_dir={generator_dir}", f"--data.latents_dir={latents}"),
        *(f"--model.tokenizer.weights={weights}", *seeds, f"--model.samples.seed={seed}"),
    ]
    shorten = ["--trainer.max_steps=2"] if fast else []
    few = ["--model.samples.num_per_class=2"] if fast else []
    last = "checkpoints/last.ckpt"
    steps = _steps([*in_generator, *shorten])
    expected = functools.cache(lambda: _generator_seconds(in_generator, steps))  # of training the generator
    settings = {"tokenizer": read_yaml(tokenizer)}
    settings |= {"generator": read_yaml(generator), "generator_name": generator_name}
    work = Stages(folder, "demo", settings | {"pictures": pictures, "seed": seed, "fast": fast})
    stages: dict[str, Stage] = {
        "train tokenizer": lambda: [
            *("fit", *in_tokenizer, *shorten, "--ckpt_path=last"),
            *_forecast(sum(work.seconds.values()) + (1 + _REST) * expected()),
        ],
        "test tokenizer": lambda: ["test", *in_tokenizer, f"--ckpt_path={tokenizer_dir / last}"],
        "cache latents": lambda: ["predict", *in_tokenizer, f"--ckpt_path={tokenizer_dir / last}"],
        f"train {generator_name}": lambda: [
            *("fit", *in_generator, *shorten, "--ckpt_path=last"),
            *_forecast(sum(work.seconds.values()) + _REST * expected()),
        ],
        "sample and measure": lambda: ["test", *in_generator, *few, f"--ckpt_path={generator_dir / last}"],
    }
    if pictures:
        drawn = [f"--output_dir={folder}", f"--ckpt_path={generator_dir / last}", "--force=true"]
        stages["draw pictures"] = lambda: [
            *("pictures", "-c", generator, f"--model.tokenizer.weights={weights}", *drawn)
        ]
    if (latents / INDEX_NAME).exists():  # which is written last, before the stage could be recorded
        work.seconds.setdefault("cache latents", 0.0)
    if stages.keys() - work.seconds.keys():
        print(
            f"{len(stages)} stages into {folder}: {', '.join(stages)}. Training {generator_name} will take about "
            f"{minutes(expected())} on this machine; what the whole will take is told when the tokenizer trains.",
            flush=True,
        )
        work.carry_out(stages)
    else:
        print(f"{folder} holds this demo, finished: choose another --output_dir to make it anew")
    total = {"total": round(sum(work.seconds.values()), 1)}
    metrics = write_outcome(folder, tokenizer_dir, generator_dir, seconds=work.seconds | total)
    print(f"\n{table(metrics, work.seconds)}\n\n{metrics['line']}")
    print(f"Pictures: {generator_dir / 'grid.png'}. Curves and grids: make tensorboard LOGS={folder}")


_REST = 0.2  # of the time that training the generator takes: sampling, measuring, caching latents


def _steps(args: list[str]) -> int:
    """Of the generator's training: nothing is claimed before its config is known to be one."""
    steps = PartsOnly(args, prog="scalear demo").config.trainer.max_steps
    if steps < 1:
        raise ValueError(f"trainer.max_steps is {steps}, by which the demo tells its time: set it in the config")
    return steps


def _generator_seconds(args: list[str], steps: int) -> float:
    """What so many steps of training the generator will take, from a few on random latents."""
    subject = build_subject([*args, "--model.tokenizer.weights=null"], best_device())
    job = TrainJob(subject, subject.data.batch_size, loader=False, plain=False)
    seconds = [stopwatch(job.run, subject.device) for _ in range(4)]
    return min(seconds) * steps


def _forecast(others: float) -> list[str]:
    """Arguments that let a training tell how long the demo will take, of which `others` seconds are not its own."""
    given = f"--trainer.callbacks.seconds_around={others}", "--trainer.callbacks.whole=the whole demo"
    return [f"--trainer.callbacks+={class_path(Forecast)}", *given]


def run(args: list[str]) -> None:
    """Carry out `scalear demo ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = function_parser(demo, "scalear demo")
    add_arguments_file(parser)
    options = parser.parse_args(args[1:])
    options.pop("config", None)
    demo(**options)
