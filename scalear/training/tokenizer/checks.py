"""What would break a tokenizer's training or make it worthless, refused before the first step."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from scalear.data.datamodule import ShardDataModule
from scalear.scales import ScaleSchedule
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.objective import TokenizerLoss
from scalear.tokenizers.trainable import TrainableTokenizer
from scalear.training.tokenizer.latent_sizes import RandomSizes


def tokenizer_of(module: LightningModule, callback: Callback) -> Tokenizer:
    """The tokenizer that a callback is about.

    Raises:
        ValueError: The module is not about one.
    """
    tokenizer = getattr(module, "tokenizer", None)
    if tokenizer is None:
        name = type(callback).__name__
        raise ValueError(
            f"{name} is for tokenizers, not for a {type(module).__name__}: remove it from trainer.callbacks"
        )
    return tokenizer


def check_data(
    tokenizer: Tokenizer, loss: TokenizerLoss, schedule: ScaleSchedule | None, data: ShardDataModule
) -> None:
    """Compare the dataset's images with what tokenizer, discriminator and the scales to be measured take.

    Raises:
        ValueError: They do not fit; names the remedy.
    """
    index = data.index
    if index.kind != "images":
        raise ValueError(f"a tokenizer needs images, but {data.folder} holds {index.kind}: set data.data_dir")
    if index.image_channels != tokenizer.image_channels:
        raise ValueError(
            f"{data.data_dir} holds images of {index.image_channels} channel(s), the tokenizer is built for "
            f"{tokenizer.image_channels}: set tokenizer.image_channels to {index.image_channels}, or leave it out"
        )
    size = data.image_size, data.image_size
    _check_scales(tokenizer, schedule, tokenizer.latent_size(size))
    if loss.adversarial is not None:
        loss.adversarial.discriminator.check_size(size)


def _check_scales(tokenizer: Tokenizer, schedule: ScaleSchedule | None, full: tuple[int, int]) -> None:
    if schedule is None:
        return
    if tokenizer.schedule is not None:
        tokenizer.schedule.require_final(full)
        schedule.require_final(full)
    height, width = schedule.sizes[-1]
    if height > full[0] or width > full[1]:
        raise ValueError(
            f"the last size {height}x{width} of scales is larger than the latent, {full[0]}x{full[1]}: shorten the list"
        )


def check_training(tokenizer: Tokenizer, loss: TokenizerLoss, sizes: RandomSizes | None, trainer: Trainer) -> None:
    """Check what only training needs.

    Raises:
        ValueError: It cannot work; names the remedy.
    """
    if not isinstance(tokenizer, TrainableTokenizer):
        raise ValueError(f"{tokenizer.title} cannot be trained here, only tested and used: fit a ConvTokenizer instead")
    weightless = loss.penalty_weights.keys() - tokenizer.penalties
    if weightless:
        raise ValueError(
            f"loss.penalty_weights has {min(weightless)!r}, but the penalties of {tokenizer.title} are "
            f"{sorted(tokenizer.penalties)}: remove it"
        )
    if sizes is not None and not tokenizer.scales_freely:
        raise ValueError(
            f"{tokenizer.title} has one latent size: leave out `sizes`, or take the bottleneck VectorQuantizer, which "
            "scales"
        )
    if trainer.world_size > 1:
        tokenizer.check_gradients()
    data = trainer.datamodule
    if data is not None and data.train_split not in data.predict_splits:
        raise ValueError(
            f"the latents of a trained tokenizer are measured on {data.train_split!r}: add it to data.predict_splits"
        )
    precision = trainer.precision_plugin
    if loss.adversarial is not None and isinstance(precision, MixedPrecision) and precision.scaler is not None:
        raise ValueError("the adversarial loss does not support 16-mixed: set trainer.precision to bf16-mixed")
