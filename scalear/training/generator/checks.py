"""Whether a generator, its tokenizer and its data fit one another: looked at before training starts."""

from lightning.pytorch import Trainer

from scalear.data.datamodule import ShardDataModule
from scalear.image_model import ImageModel
from scalear.scales import ScaleSchedule
from scalear.schedules import ScheduleSampler


def check_data(data: ShardDataModule, model: ImageModel, fingerprint: str, schedules: ScheduleSampler | None) -> None:
    """Refuse data that a model cannot learn from.

    Args:
        data: Images or cached latents.
        model: What learns from them.
        fingerprint: Of its tokenizer, which makes or made the latents.
        schedules: What draws the scales of training, if not the model's are used.

    Raises:
        ValueError: Tokenizer, classes, channels, sizes or scales differ; names both sides.
    """
    data.check_tokenizer(fingerprint)
    index, tokenizer = data.index, model.tokenizer
    if not index.num_classes and model.num_classes:
        raise ValueError(
            f"{data.folder} has no labels, and a generator of {model.num_classes} classes would learn none of them: "
            "set transformer.num_classes to 0 or leave it out, or make a dataset with labels (data pack of a folder "
            "per class, data index --label)"
        )
    if index.num_classes != model.num_classes:
        raise ValueError(
            f"{data.folder} has {index.num_classes} classes, the generator {model.num_classes}: "
            f"set transformer.num_classes to {index.num_classes}"
        )
    if index.image_channels != tokenizer.image_channels:
        raise ValueError(
            f"{data.folder} holds images of {index.image_channels} channel(s), the tokenizer is built for "
            f"{tokenizer.image_channels}: set tokenizer.image_channels to {index.image_channels}, or leave it out"
        )
    latent_size = tokenizer.latent_size((data.image_size, data.image_size))
    model.pyramid.check(model.schedule, latent_size)
    if tokenizer.schedule is not None and model.schedule != tokenizer.schedule:
        raise ValueError(
            f"the generator's scales are {model.schedule}, those of the tokenizer's residual codes "
            f"{tokenizer.schedule}: set transformer.scales to these"
        )
    if schedules is not None:
        try:
            model.generator.transformer.check(schedules.draw(seed=0, number=0))
            model.pyramid.check(ScaleSchedule((schedules.final,)), latent_size)
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


def check_all_batches(trainer: Trainer) -> None:
    """Refuse to make a part of the samples that are asked for.

    Args:
        trainer: Of `test` or `predict`.

    Raises:
        ValueError: It is limited to some of the batches.
    """
    stage = "test" if trainer.testing else "predict"
    limit = getattr(trainer, f"limit_{stage}_batches")
    if isinstance(limit, int) or limit < 1:
        raise ValueError(
            f"trainer.limit_{stage}_batches (or fast_dev_run) would leave out samples that are asked for: "
            "ask for fewer with samples.num_per_class or samples.classes, or for a part with samples.part"
        )
