"""Whether a generator, its tokenizer and its data fit one another: looked at before training starts."""

from scalear.data.datamodule import ShardDataModule
from scalear.models.generator import Generator
from scalear.scales import ScaleSchedule
from scalear.schedules import ScheduleSampler
from scalear.tokenizers.base import Tokenizer


def check_data(
    data: ShardDataModule,
    generator: Generator,
    tokenizer: Tokenizer,
    fingerprint: str,
    schedules: ScheduleSampler | None,
) -> None:
    """Refuse data that the generator cannot learn from.

    Args:
        data: Images or cached latents.
        generator: What learns from them.
        tokenizer: Makes or made the latents.
        fingerprint: Of the tokenizer.
        schedules: What draws the scales of training, if not the generator's are used.

    Raises:
        ValueError: Tokenizer, classes, channels, sizes or scales differ; names both sides.
    """
    data.check_tokenizer(fingerprint)
    index = data.index
    if index.num_classes not in (0, generator.num_classes):
        raise ValueError(
            f"{data.data_dir} has {index.num_classes} classes, the generator {generator.num_classes}: "
            f"set transformer.num_classes to {index.num_classes}"
        )
    if index.image_channels != tokenizer.image_channels:
        raise ValueError(
            f"{data.data_dir} holds images of {index.image_channels} channel(s), the tokenizer is built for "
            f"{tokenizer.image_channels}"
        )
    side = data.random_crop or index.image_size
    latent_size = tokenizer.latent_size((side, side))
    generator.check_latent(tokenizer.latent_channels, latent_size)
    if tokenizer.schedule is not None and generator.schedule != tokenizer.schedule:
        raise ValueError(
            f"the generator's scales are {generator.schedule}, those of the tokenizer's residual codes "
            f"{tokenizer.schedule}: set transformer.scales to these"
        )
    if schedules is not None:
        try:
            generator.transformer.check(schedules.draw(seed=0, step=0))
            generator.pyramid.check(ScaleSchedule((schedules.final,)), latent_size)
        except ValueError as error:
            raise ValueError(f"model.schedules ({type(schedules).__name__}) does not fit: {error}") from error


def check_fingerprint(trained_with: str | None, fingerprint: str) -> None:
    """Refuse a checkpoint of a generator that learned from another tokenizer.

    Raises:
        ValueError: The fingerprints differ.
    """
    if trained_with != fingerprint:
        raise ValueError(
            f"the generator was trained on latents of a tokenizer with fingerprint {trained_with}, this config's "
            f"has {fingerprint}: set tokenizer.weights to the file that was used then"
        )
