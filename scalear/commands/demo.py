"""`scalear demo`: every stage of an experiment in one go, through the same commands that a user would type.

Train the tokenizer, test it, cache latents, train the generator, sample and measure; then one table.
"""

import json
import time
from pathlib import Path

import torch

from scalear.__main__ import main
from scalear.benchmark.jobs import TrainJob
from scalear.commands.benchmark import build_subject
from scalear.commands.parser import add_arguments_file, function_parser
from scalear.data.index import INDEX_NAME
from scalear.files import write_json
from scalear.hardware.machine import stopwatch
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
        ValueError: `output_dir` holds a demo with other settings, or something else.
    """
    folder = Path(output_dir)
    tokenizer_dir, generator_dir = folder / "tokenizer", folder / generator_name
    settings = {"tokenizer": read_yaml(tokenizer)}
    settings |= {"generator": read_yaml(generator), "generator_name": generator_name}
    seconds = _begin(folder, settings | {"pictures": pictures, "seed": seed, "fast": fast})
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
    training_generator = f"train {generator_name}"
    stages = {
        "train tokenizer": ["fit", *in_tokenizer, *shorten, "--ckpt_path=last"],
        "test tokenizer": ["test", *in_tokenizer, f"--ckpt_path={tokenizer_dir / last}"],
        "cache latents": ["predict", *in_tokenizer, f"--ckpt_path={tokenizer_dir / last}"],
        training_generator: ["fit", *in_generator, *shorten, "--ckpt_path=last"],
        "sample and measure": ["test", *in_generator, *few, f"--ckpt_path={generator_dir / last}"],
    }
    if pictures:
        drawn = [f"--output_dir={folder}", f"--ckpt_path={generator_dir / last}", "--force=true"]
        stages["draw pictures"] = ["pictures", "-c", generator, f"--model.tokenizer.weights={weights}", *drawn]
    if (latents / INDEX_NAME).exists():  # which is written last, before the stage could be recorded
        seconds.setdefault("cache latents", 0.0)
    if stages.keys() - seconds.keys():
        steps = settings["generator"]["trainer"]["max_steps"]
        _carry_out(folder, stages, seconds, generator_name, _generator_seconds(in_generator, steps))
    else:
        print(f"{folder} holds this demo, finished: choose another --output_dir to make it anew")
    _report(folder, tokenizer_dir, generator_dir, seconds)


def _carry_out(
    folder: Path, stages: dict[str, list[str]], seconds: dict[str, float], generator_name: str, expected: float
) -> None:
    """All stages that have no seconds yet; each gets them when it is done."""
    print(
        f"{len(stages)} stages into {folder}: {', '.join(stages)}. Training {generator_name} will take about "
        f"{minutes(expected)} on this machine; what the whole will take is told when the tokenizer trains.",
        flush=True,
    )
    for number, (stage, args) in enumerate(stages.items(), start=1):
        if stage in seconds:
            print(f"[{number}/{len(stages)}] {stage}: done already", flush=True)
            continue
        print(f"\n[{number}/{len(stages)}] {stage}: scalear {' '.join(args)}", flush=True)
        start = time.perf_counter()
        if args[0] == "fit":
            others = sum(seconds.values()) + _REST * expected + (0 if stage == f"train {generator_name}" else expected)
            args = [*args, *_forecast(others)]
        if main(args):
            raise RuntimeError(f"the demo stopped at stage {number}, {stage}")
        seconds[stage] = round(time.perf_counter() - start, 1)
        record = json.loads((folder / _RECORD).read_text())
        write_json(folder / _RECORD, record | {"seconds": seconds})


_RECORD = "demo.json"  # settings, and the seconds of the stages that are done


def _begin(folder: Path, settings: dict) -> dict[str, float]:
    """Claim a folder for a demo, or find out what of it is done: the seconds of each stage."""
    settings = json.loads(json.dumps(settings))  # as they will be read
    path = folder / _RECORD
    if path.exists():
        record = json.loads(path.read_text())
        differing = [name for name, value in settings.items() if record["settings"].get(name) != value]
        if not differing:
            return record["seconds"]
        why = f"holds an earlier demo, which differs in {' and '.join(differing)}"
    elif folder.exists() and any(folder.iterdir()):
        why = f"holds something else than a demo, or one without {_RECORD}"
    else:
        write_json(path, {"settings": settings, "seconds": {}})
        return {}
    raise ValueError(f"{folder} {why}: choose another --output_dir, or move it away")


_REST = 0.2  # of the time that training the generator takes: sampling, measuring, caching latents


def _generator_seconds(args: list[str], steps: int) -> float:
    """What so many steps of training the generator will take, from a few on random latents."""
    subject = build_subject([*args, "--model.tokenizer.weights=null"], torch.device("cpu"))
    job = TrainJob(subject, subject.data.batch_size, loader=False, plain=False)
    seconds = [stopwatch(job.run, subject.device) for _ in range(4)]
    return min(seconds) * steps


def _forecast(others: float) -> list[str]:
    """Arguments that let a training tell how long the demo will take, of which `others` seconds are not its own."""
    name = f"{Forecast.__module__}.{Forecast.__qualname__}"
    given = f"--trainer.callbacks.seconds_around={others}", "--trainer.callbacks.whole=the whole demo"
    return [f"--trainer.callbacks+={name}", *given]


def _report(folder: Path, tokenizer_dir: Path, generator_dir: Path, seconds: dict[str, float]) -> None:
    reconstruction = json.loads((tokenizer_dir / "metrics.json").read_text())
    samples = json.loads((generator_dir / "metrics.json").read_text())
    total = round(sum(seconds.values()), 1)
    metrics = {
        **{name.removeprefix("val/"): value for name, value in reconstruction.items()},
        **samples,
        "seconds": seconds | {"total": total},
    }
    write_json(folder / "metrics.json", metrics)
    rows = [
        ("FID of samples", f"{metrics['fid']:.3f}"),
        ("FID of real images (floor)", f"{metrics['fid_floor']:.3f}"),
        ("FID of reconstructions", f"{metrics['rfid']:.3f}"),
        ("texture (floor)", f"{metrics['texture']:.2f} ({metrics['texture_floor']:.2f})"),
        ("samples classified as their label", f"{metrics['accuracy']:.1%}"),
        ("recall / precision", f"{metrics['recall']:.3f} / {metrics['precision']:.3f}"),
        ("variety of the least varied class", f"{metrics['variety_min']:.2f} of real"),
        *((f"seconds: {stage}", f"{spent:.0f}") for stage, spent in metrics["seconds"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:<{width}}  {value:>12}" for name, value in rows))
    print(f"\n{metrics['line']}")
    print(f"Pictures: {generator_dir / 'grid.png'}. Curves and grids: make tensorboard LOGS={folder}")


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
