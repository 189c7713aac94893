"""What `scalear try` decides: settings that fit a folder of pictures and a length of time. Pure functions.

A laptop config is the base. Settings of an overlay are named by their place in it, with dots; what neither an overlay
nor the dataset says stays as the base has it.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["flowar", "flexvar", "var"]
Config = dict[str, Any]
Overlay = dict[str, Any]

TOKENIZERS: dict[Family, str] = {"flowar": "kl", "flexvar": "vq", "var": "rvq"}
"""Config of the tokenizer of each family."""
SIZES = (16, 128)
"""Sides of pictures in pixels, from and to; larger ones are for the configs of imagenet256."""
FEWEST = 50
"""Pictures in all."""
FEWEST_OF_CLASS = 8
"""Pictures of a class, on average: one of them is held out."""
LEAST_MINUTES = 4.0
"""Below, each training would have some seconds."""
SHARES = {"pack": 0.05, "measure": 0.07, "tokenizer": 0.16, "cache": 0.05, "generator": 0.55, "sample": 0.12}
"""Of the whole time, in the order of the work: packing, training the network that measures, the tokenizer, testing it
and caching latents, the generator, sampling and measuring."""
BALANCE = 1 / 3
"""Training pictures of a class, as a share of those of the largest, below which they are packed several times."""
_EPOCHS = {"measure": 60, "tokenizer": 200, "generator": 200}
"""After so many, pictures are too few to learn more from."""
_IN_TRAINING = 0.92
"""Of the time of a training stage: the rest is validation, building the model, and saving."""


@dataclass(frozen=True)
class Facts:
    """What is known of packed pictures.

    Attributes:
        num_train: Training pictures.
        image_channels: 1 (grey) or 3 (RGB).
        image_size: Side in pixels.
        flip: Whether they may be mirrored.
    """

    num_train: int
    image_channels: int
    image_size: int
    flip: bool


def check_request(num_pictures: int, num_classes: int, image_size: int, minutes: float, family: Family) -> None:
    """Refuse before any work what cannot come to anything.

    Args:
        num_pictures: In the folder.
        num_classes: Their classes; 0 for none.
        image_size: Side in pixels that is wanted.
        minutes: That the whole may take.
        family: Of the generator.

    Raises:
        ValueError: Names the value, the limit and the remedy.
    """
    if num_pictures < FEWEST:
        raise ValueError(f"{num_pictures} pictures are too few to learn from: give at least {FEWEST}")
    if num_pictures < FEWEST_OF_CLASS * num_classes:
        raise ValueError(
            f"{num_pictures:,} pictures in {num_classes:,} folders are too few of each to learn classes from (at least "
            f"{FEWEST_OF_CLASS}): give more of each, or --labelled false, for folders that are not classes"
        )
    low, high = SIZES
    if not low <= image_size <= high:
        raise ValueError(
            f"image_size is {image_size}, must be from {low} to {high}: for larger pictures pack them with "
            "`scalear data pack` and take the configs of imagenet256"
        )
    if image_size % (step := token_width(image_size, family)):
        near = image_size // step * step
        raise ValueError(
            f"image_size is {image_size}, but a token of {family} is {step} pixels wide there: take {near} or "
            f"{near + step}"
        )
    if not LEAST_MINUTES <= minutes < math.inf:
        raise ValueError(
            f"minutes is {minutes:g}, but must be a number from {LEAST_MINUTES:g}, below which nothing is learned"
        )


def token_width(image_size: int, family: Family) -> int:
    """Pixels per token and side: what a generator costs goes with the number of tokens.

    FlowAR's tokens are many numbers: 4x4 to 9x9 of them. Codes say less: 8x8 to 16x16.
    """
    if family == "flowar":
        return 4 if image_size < 32 else 8 if image_size < 80 else 16
    return 4 if image_size < 48 else 8


def stride(image_size: int, family: Family) -> int:
    """Pixels per cell of the latent and side; a token may be 2x2 cells."""
    return min(8, token_width(image_size, family))


def val_fraction(num_pictures: int, num_classes: int) -> float:
    """Part that is held out to measure with: up to 2,000 pictures or one of a class, and no more than 15 %."""
    return min(0.15, max(2000, num_classes) / num_pictures)


def max_images(seconds: float, seconds_per_picture: float, num_classes: int) -> int:
    """Most pictures to pack, so that it keeps its share and that training sees most of them.

    Args:
        seconds: Of the whole command.
        seconds_per_picture: Of decoding, cropping and encoding, on all CPUs together.
        num_classes: Each of which needs some.
    """
    by_packing = SHARES["pack"] * seconds / max(seconds_per_picture, 1e-9)
    return max(2 * FEWEST, FEWEST_OF_CLASS * num_classes, int(min(by_packing, 20 * seconds)))


def growth(base: Config, facts: Facts, family: Family) -> float:
    """How many times as many cells (of a tokenizer) or tokens (of a generator) a picture has as at the base's 32 px."""
    model = base["model"]["init_args"]
    if "tokenizer" not in model:
        return 1.0  # the network that measures sees all pictures at about 32 px
    width = (token_width if "pyramid" in model else stride)(facts.image_size, family)
    cells, before = facts.image_size // width, 32 // model["tokenizer"]["init_args"]["shape"]["patch_size"]
    return (cells / before) ** 2


def batch_size(most: int, num_train: int) -> int:
    """A power of two, or `most`, that gives a small dataset eight steps an epoch; at least 8."""
    if num_train >= 8 * most:
        return most
    return min(most, max(8, 2 ** int(math.log2(max(1, num_train / 8)))))


def training_seconds(stage: str, left: float) -> float:
    """What a training stage may take of the seconds that are left of the whole, without validation and the like."""
    names = list(SHARES)
    to_come = names[names.index(stage) :]
    return _IN_TRAINING * left * SHARES[stage] / sum(SHARES[name] for name in to_come)


def num_steps(stage: str, left: float, seconds_per_step: float, batch: int, num_train: int) -> int:
    """Steps of a training: as many as there is time for, and as there are pictures to learn from.

    Raises:
        ValueError: There is time for next to none.
    """
    affordable = int(training_seconds(stage, left) / seconds_per_step)
    if affordable < 10:
        raise ValueError(
            f"a step of training ({stage}) takes {seconds_per_step:.1f} s here, of which {affordable} fit into the "
            "time that is left: give more --minutes, or a smaller --image_size"
        )
    return min(affordable, max(10, _EPOCHS[stage] * num_train // batch))


def num_samples(left: float, seconds_per_sample: float, num_train: int) -> int:
    """Pictures to sample and measure, from 500 to 2,000.

    Args:
        left: Seconds of the whole that are left before the generator trains.
        seconds_per_sample: Of sampling.
        num_train: Training pictures; as many of them as there are samples make the floor.
    """
    share = SHARES["sample"] / (SHARES["generator"] + SHARES["sample"])
    affordable = 0.6 * share * left / seconds_per_sample  # the rest is measuring
    return max(500, min(2000, int(affordable) // 100 * 100, num_train // 100 * 100))


def tokenizer_shape(facts: Facts, family: Family) -> Overlay:
    """Settings that the configs of a tokenizer and of its generator share."""
    place = "model.init_args.tokenizer.init_args"
    found = {f"{place}.shape.patch_size": stride(facts.image_size, family)}
    if family == "flowar" and facts.image_channels == 3:
        found[f"{place}.shape.pixel_channels"] = 16  # without them, colours show the seams between patches
        found[f"{place}.bottleneck.init_args.latent_channels"] = 16
    return found


def tokenizer_loss(facts: Facts, family: Family) -> Overlay:
    """More noise in the latents of colours: the decoder has more to forgive there."""
    if family == "flowar" and facts.image_channels == 3:
        return {"model.init_args.loss.penalty_weights.kl": 5.0e-2}
    return {}


def token_settings(facts: Facts, family: Family) -> Overlay:
    """Cells of the latent per token; and less guidance than the base's and half of its parameters for many tokens.

    With a smaller model there is time for nearly twice as many steps.
    """
    width = token_width(facts.image_size, family)
    found: Overlay = {}
    if (cells := width // stride(facts.image_size, family)) > 1:
        found["model.init_args.pyramid"] = {"class_path": "LatentPyramid", "init_args": {"patch_size": cells}}
    if family == "flowar" and facts.image_size // width >= 8:
        network = "model.init_args.head.init_args.network.init_args"
        found |= {
            "model.init_args.transformer.dim": 128,
            "model.init_args.transformer.block.init_args.num_heads": 2,
            f"{network}.dim": 192,
            f"{network}.num_heads": 3,
            "model.init_args.guidance.weight": 3.0,
        }
    return found


def with_batch(base: Config, facts: Facts, family: Family) -> Overlay:
    """Batch and learning rate for so many pictures of this size, and whether to flip.

    Of larger pictures fewer, so that a step has as many cells; of few pictures fewer, and then the rate goes with the
    root of the batch.
    """
    settings = base["data"]["init_args"]
    most = max(8, int(settings["batch_size"] / max(1.0, growth(base, facts, family))))
    batch = batch_size(most, facts.num_train)
    overlay: Overlay = {"data.init_args.batch_size": batch, "data.init_args.flip": facts.flip}
    if batch < most:
        rate = base["model"]["init_args"]["optimizer"]["lr"] * math.sqrt(batch / most)
        overlay["model.init_args.optimizer.lr"] = float(f"{rate:.2g}")
    return overlay


def with_length(base: Config, steps: int) -> Overlay:
    """What follows from the number of steps: warm-up, validation and pictures at half-time, and the average."""
    trainer = base["trainer"]
    half = max(1, steps // 2)
    overlay: Overlay = {"trainer.max_steps": steps, "trainer.val_check_interval": half}
    warmup = base["model"]["init_args"]["optimizer"].get("warmup_steps")
    if warmup:
        overlay["model.init_args.optimizer.warmup_steps"] = max(1, warmup * steps // trainer["max_steps"])
    if "callbacks" in trainer:
        overlay["trainer.callbacks"] = [_paced(callback, steps, half) for callback in trainer["callbacks"]]
    return overlay


def laid_over(base: Config, overlay: Mapping[str, Any]) -> Config:
    """The base with the settings of an overlay.

    Raises:
        KeyError: The base has no such place.
    """
    config = copy.deepcopy(base)
    for name, value in overlay.items():
        *path, last = name.split(".")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    return config


def _paced(callback: Any, steps: int, half: int) -> Any:
    """A callback of a base config, every N steps of which are half of the run."""
    if not isinstance(callback, dict):
        return callback
    pace = {"every_n_train_steps": half, "every_n_steps": half}
    settings = callback["init_args"]
    changed = {name: value for name, value in pace.items() if name in settings}
    if callback["class_path"] == "EMA":
        changed["decay"] = round(max(0.0, 1 - 4 / steps), 5)  # over a quarter of the run
    return {**callback, "init_args": settings | changed}
