"""`scalear try`: a folder of pictures to a trained generator, its samples and their numbers, within a length of time.

Pack, train the network that measures, the tokenizer, cache latents, train the generator, sample, measure, and look for
copies. What a stage is made of is written as YAML before it begins, and a command that was stopped goes on by it.
"""

import functools
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scalear.benchmark.jobs import SampleJob
from scalear.commands.benchmark import build_subject
from scalear.commands.run import PartsOnly
from scalear.commands.staged import recipe
from scalear.commands.staged.outcome import table, write_outcome
from scalear.commands.staged.recipe import Config, Facts, Family, Overlay
from scalear.commands.staged.stages import Stage, Stages
from scalear.commands.typed.parser import CommandParser, add_arguments_file, summary
from scalear.data.imaging import center_crop, encode, standardise
from scalear.data.index import INDEX_NAME, DatasetIndex
from scalear.data.mirrored import MEANS_SOMETHING, told_from_mirrored
from scalear.data.sources import ImageFolder
from scalear.evaluation.classifier import CLASSIFIER_NAME, classifier_record
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.image_set import ArraySet, SampleSet, ShardSet
from scalear.evaluation.images import save_png
from scalear.evaluation.neighbours import COPIES, find_neighbours
from scalear.files import write_bytes, write_json
from scalear.hardware.cpus import allowed_cpus
from scalear.hardware.machine import best_device, stopwatch
from scalear.training.performance import minutes as in_words
from scalear.training.trial import seconds_per_step
from scalear.yaml_files import read_yaml, to_yaml


@dataclass(frozen=True)
class TryRequest:
    """Train a tokenizer and a generator on a folder of pictures, sample and measure, all within so many minutes.

    Goes on where it was stopped; one that is finished is reported again.
    """

    pictures: str
    """Folder of pictures: one folder per class, also below `train` and `val`, or no folders at all."""
    image_size: int = 64
    """Side in pixels of the squares that they are cut to, 16 to 128."""
    minutes: float = 20.0
    """Length of the whole command on this machine, which is kept to a tenth."""
    family: Family = "flowar"
    """Of the generator."""
    output_dir: str = "runs/try"
    """Gets the dataset, a folder and a YAML file per model, pictures and metrics.json."""
    labelled: bool = True
    """False if folders are not classes."""
    flip: bool | Literal["auto"] = "auto"
    """Mirror pictures in training. By default, unless the mean picture of a class tells 60 % of its pictures from their
    mirror images."""
    seed: int = 0
    """Of weights, order, noise and samples."""
    fast: bool = False
    """A few steps and samples only, to see that everything runs; the pictures are noise."""


class Try:
    """A folder of pictures, and what is made of it.

    Args:
        request: What was typed.

    Raises:
        ValueError: There is nothing to learn from, or no time for it; or `output_dir` holds something else.
    """

    def __init__(self, request: TryRequest) -> None:
        self.request = request
        start = time.perf_counter()
        bases = {"measure": "classifier", "tokenizer": recipe.TOKENIZERS[request.family], "generator": request.family}
        self.base_paths = {stage: Path("configs/fashion", f"{name}.yaml") for stage, name in bases.items()}
        self.bases = {stage: read_yaml(path) for stage, path in self.base_paths.items()}
        self.folder = Path(request.output_dir)
        if self.folder.resolve().is_relative_to(Path(request.pictures).resolve()):
            raise ValueError(
                f"output_dir {self.folder} lies in {request.pictures}, whose pictures are learned: give another one"
            )
        listing = ImageFolder(request.pictures, labelled=request.labelled).listing(request.seed)
        self._entries = [entry for entries in listing.splits.values() for entry in entries]
        self._has_val, self._num_classes = "val" in listing.splits, len(listing.class_names)
        recipe.check_request(len(self._entries), self._num_classes, request.image_size, request.minutes, request.family)
        settings = asdict(request) | {"pictures": str(Path(request.pictures).resolve())}
        self.work = Stages(self.folder, "try", settings)
        self.data, self.latents = self.folder / "data", self.folder / "tokenizer" / "latents"
        self.names = {"measure": "classifier", "tokenizer": "tokenizer", "generator": request.family}
        self.device = best_device()
        self._before = time.perf_counter() - start  # the first stage

    def run(self) -> None:
        """All stages that are not done, then the report."""
        stages: dict[str, Stage] = {
            "pack pictures": self._pack,
            "train measuring network": lambda: self._fit("measure"),
            "train tokenizer": lambda: self._fit("tokenizer"),
            "test tokenizer": lambda: self._use("test", "tokenizer"),
            "cache latents": lambda: self._use("predict", "tokenizer"),
            "train generator": lambda: self._fit("generator"),
            "sample and measure": lambda: self._use("test", "generator"),
            "look for copies": self._compare,
        }
        # Indexes are written last, before their stage could be recorded.
        for stage, folder in (("pack pictures", self.data), ("cache latents", self.latents)):
            if (folder / INDEX_NAME).exists():
                self.work.seconds.setdefault(stage, 0.0)
        if stages.keys() - self.work.seconds.keys():
            print(
                f"{len(self._entries):,} pictures in {self._num_classes or 'no'} classes. {len(stages)} stages into "
                f"{self.folder}, about {self.request.minutes:g} min: {', '.join(stages)}",
                flush=True,
            )
            self.work.carry_out(stages)
        else:
            print(f"{self.folder} holds this try, finished: choose another --output_dir to make it anew")
        self._report()

    def _pack(self) -> list[str]:
        return ["data", "pack", "--config", str(self._decided("pack", self._packing))]

    def _fit(self, stage: str) -> list[str]:
        path = self._decided(self.names[stage], lambda: self._training(stage))
        return ["fit", "-c", str(path), "--ckpt_path=last"]

    def _use(self, command: str, stage: str) -> list[str]:
        checkpoint = self.folder / self.names[stage] / "checkpoints" / "last.ckpt"
        return [command, "-c", str(self._yaml(self.names[stage])), f"--ckpt_path={checkpoint}"]

    def _compare(self) -> None:
        print("nearest training pictures of samples", flush=True)
        extractor = ClassifierFeatures(str(self.data / CLASSIFIER_NAME))
        samples = SampleSet(self.folder / self.request.family / "samples.npz").load()
        train, val = self._images("train", _COMPARED), self._images("val", _HELD_OUT)
        found = find_neighbours(samples, train, val, extractor)
        save_png(self.folder / _PICTURE, found.picture)
        write_json(self.folder / _COPYING, {"nearest": found.nearest, "compared": len(train)})

    def _decided(self, name: str, decide: Callable[[], tuple[Config, list[str]]]) -> Path:
        """The YAML file of a stage: as it was written before, or as it is decided now, with remarks above."""
        path = self._yaml(name)
        if not path.exists():
            config, remarks = decide()
            write_bytes(path, ("".join(f"# {line}\n" for line in remarks) + to_yaml(config)).encode())
        return path

    def _yaml(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def _packing(self) -> tuple[Config, list[str]]:
        """How many pictures there is time for, in which channels, and which are held out."""
        seconds, channels = self._look_at_some()
        most = recipe.max_images(60 * self.request.minutes, seconds / allowed_cpus(), self._num_classes)
        count = min(most, len(self._entries))
        remark = (
            f"{count:,} of {len(self._entries):,} pictures, for each takes {seconds * 1000:.1f} ms to read and pack"
        )
        print(remark, flush=True)
        source = {
            "root": self.request.pictures,
            "labelled": self.request.labelled,
            "max_images": most if most < len(self._entries) else None,
            "val_fraction": 0.0 if self._has_val else recipe.val_fraction(count, self._num_classes),
            "balance": recipe.BALANCE,
        }
        return {
            "source": {"class_path": "ImageFolder", "init_args": source},
            "output_dir": str(self.data),
            "name": Path(self.request.pictures).resolve().name,
            "image_size": self.request.image_size,
            "image_channels": channels,
            "max_bad_fraction": _MAX_BAD,
            "num_workers": 0 if count * seconds < _NO_WORKERS else None,
            "seed": self.request.seed,
        }, [remark]

    def _look_at_some(self) -> tuple[float, int]:
        """Seconds to pack a picture on one CPU, and channels: 1 where all that were looked at are grey."""
        some = random.Random(self.request.seed).sample(self._entries, min(_LOOKED_AT, len(self._entries)))
        source, start = ImageFolder(self.request.pictures), time.perf_counter()
        coloured, bad = False, []
        for entry in some:
            try:
                image = center_crop(standardise(source.image(entry), 3), self.request.image_size)
            except Exception as error:  # decoders raise nearly anything on broken bytes
                bad.append(f"{entry.location} ({type(error).__name__}: {error})")
                continue
            encode(image, "png", 95)
            pixels_HWC = np.asarray(image)
            coloured |= bool((pixels_HWC != pixels_HWC[..., :1]).any())
        if len(bad) == len(some):
            raise ValueError(f"none of {len(some)} pictures can be read, such as {bad[0]}: give a folder of others")
        return (time.perf_counter() - start) / len(some), 3 if coloured else 1

    def _training(self, stage: str) -> tuple[Config, list[str]]:
        """The config of a training, of as many steps as its share of the time is worth here."""
        base, seed = self.bases[stage], self.request.seed
        overlay: Overlay = dict.fromkeys(("seed_everything", "model.init_args.seed", "data.init_args.seed"), seed)
        overlay |= {
            "data.init_args.data_dir": str(self.data),
            "trainer.default_root_dir": str(self.folder / self.names[stage]),
            **recipe.with_batch(base, self.facts, self.request.family),
        }
        if stage != "measure":
            overlay |= recipe.tokenizer_shape(self.facts, self.request.family)
        if stage == "tokenizer":
            overlay |= recipe.tokenizer_loss(self.facts, self.request.family)
        if stage == "generator":
            overlay |= recipe.token_settings(self.facts, self.request.family)
            overlay |= {
                "model.init_args.tokenizer.init_args.weights": str(self.folder / "tokenizer/tokenizer.safetensors"),
                "model.init_args.samples.seed": seed,
                "data.init_args.latents_dir": str(self.latents),
            }
            overlay["model.init_args.samples.num_images"] = self._num_samples(base, overlay)
        steps, remark = self._steps(stage, base, overlay)
        overlay |= recipe.with_length(base, steps)
        changes = [f"  {place}: {json.dumps(value)}" for place, value in overlay.items()]
        return recipe.laid_over(base, overlay), [f"{self.base_paths[stage]} with", *changes, remark]

    def _steps(self, stage: str, base: Config, overlay: Overlay) -> tuple[int, str]:
        """How many there is time for, and a line that says so."""
        if self.request.fast:
            return 2, "Two steps, to see that everything runs."

        def seconds_and_batch(args: list[str]) -> tuple[float, int]:
            parts = PartsOnly(args, prog="scalear try").config_init
            clip = base["trainer"].get("gradient_clip_val")
            return seconds_per_step(parts.model, parts.data, self.device, clip), parts.data.batch_size

        seconds, batch = self._with_config(base, overlay, seconds_and_batch)
        steps = recipe.num_steps(stage, self._left(), seconds, batch, self.facts.num_train)
        epochs = steps * batch / self.facts.num_train
        remark = f"{steps:,} steps of {seconds:.2f} s: {epochs:.1f} epochs in {in_words(steps * seconds)}."
        print(remark, flush=True)
        return steps, remark

    def _num_samples(self, base: Config, overlay: Overlay) -> int:
        """How many there is time for."""
        if self.request.fast:
            return 2 * max(1, self._num_classes)

        def seconds_per_sample(args: list[str]) -> float:
            job = SampleJob(build_subject([*args, "--model.tokenizer.weights=null"], self.device), _SAMPLED, True)
            return min(stopwatch(job.run, self.device) for _ in range(2)) / _SAMPLED

        seconds = self._with_config(base, overlay, seconds_per_sample)
        return recipe.num_samples(self._left(), seconds, self.facts.num_train)

    def _with_config(self, base: Config, overlay: Overlay, use: Callable[[list[str]], Any]) -> Any:
        """What comes of the arguments of a config that is not decided yet."""
        path = self.folder / ".undecided.yaml"
        path.write_text(to_yaml(recipe.laid_over(base, overlay)))
        try:
            return use(["-c", str(path)])
        finally:
            path.unlink()

    def _left(self) -> float:
        """Seconds that are left of the whole."""
        return 60 * self.request.minutes - self._before - self.work.spent()

    @functools.cached_property
    def facts(self) -> Facts:
        """Of the packed pictures."""
        index, flip = DatasetIndex.load(self.data), self.request.flip
        if flip == "auto":
            some = self._images("train", _JUDGED)
            told = told_from_mirrored(some.images, some.labels)
            flip = told < MEANS_SOMETHING
            print(f"{told:.0%} of pictures are told from their mirror images: {'' if flip else 'not '}mirrored")
        return Facts(index.num_samples("train"), index.image_channels, index.image_size, flip)

    def _images(self, split: str, most: int) -> ArraySet:
        """Each once: pictures of small classes are packed several times."""
        found = ShardSet(self.data, split, min(most, DatasetIndex.load(self.data).num_samples(split))).load()
        places = list({image_HWC.tobytes(): place for place, image_HWC in enumerate(found.images)}.values())
        return replace(found, images=found.images[places], labels=found.labels[places])

    def _report(self) -> None:
        seconds, generator_dir = self.work.seconds, self.folder / self.request.family
        more = json.loads((self.folder / _COPYING).read_text())
        if (right := classifier_record(self.data / CLASSIFIER_NAME).get("val_accuracy")) is not None:
            more["accuracy_real"] = right
        index = DatasetIndex.load(self.data)
        counts = {split: index.num_samples(split) for split in index.splits}
        more |= {"pictures": len(self._entries), "packed": counts, "seconds": seconds}
        metrics = write_outcome(self.folder, self.folder / "tokenizer", generator_dir, **more)
        print(f"\n{table(metrics, seconds)}\n\n{metrics['line']}")
        if (most := read_yaml(self._yaml("pack"))["source"]["init_args"]["max_images"]) is not None:
            print(f"Of {len(self._entries):,} pictures {most:,} were taken, for more would have taken too long.")
        verdict = "the samples are copies" if metrics["nearest"] < COPIES else "the samples are no copies"
        print(
            f"Nearest of {metrics['compared']:,} training pictures: {self.folder / _PICTURE}; {verdict} of these, for "
            f"they are {metrics['nearest']:.2f} times as far from them as real pictures that were held out (copies: "
            f"below {COPIES})."
        )
        print(f"Pictures: {generator_dir / 'grid.png'}. Curves and grids: make tensorboard LOGS={self.folder}")
        print("Train either for longer, here or on a GPU, in a new folder:")
        for stage in ("tokenizer", "generator"):
            name = self.names[stage]
            print(
                f"  scalear fit -c {self._yaml(name)} --trainer.max_steps N --trainer.default_root_dir runs/long/{name}"
            )


_LOOKED_AT = 48  # pictures, before any is packed
_JUDGED = 2000  # pictures, for whether left and right mean something
_SAMPLED = 50  # pictures, to see how long sampling takes
_COMPARED, _HELD_OUT = 10_000, 2_000  # pictures that samples are compared with, of either split
_NO_WORKERS = 5.0  # seconds of packing, below which processes that help would begin too late
_MAX_BAD = 0.1  # share of pictures that may be unreadable; they are left out
_COPYING, _PICTURE = "neighbours.json", "neighbours.png"


def run(args: list[str]) -> None:
    """Carry out `scalear try ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = CommandParser(prog="scalear try", description=summary(TryRequest))
    add_arguments_file(parser)
    parser.add_class_arguments(TryRequest, as_positional=True)
    options = parser.parse_args(args[1:])
    options.pop("config", None)
    Try(TryRequest(**options)).run()
