"""The end of a tokenizer's training: its latents are measured, and it becomes a file."""

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from scalear.data.batch import Batch
from scalear.hardware.float64 import in_float64
from scalear.tensor_files import read_metadata
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.trainable import TrainableTokenizer
from scalear.tokenizers.weights import save_tokenizer
from scalear.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, checkpoint_folders
from scalear.training.interruption import INTERRUPTED
from scalear.training.named_checkpoints import metadata, newest_step

EXPORT_NAME = "tokenizer.safetensors"
BEST_NAME = "tokenizer-best.safetensors"
STATISTICS = ("latent_mean", "latent_std")
_PREFIX = "tokenizer."  # of its names in checkpoints


def export_tokenizer(tokenizer: TrainableTokenizer, trainer: Trainer, num_samples: int, per_channel_std: bool) -> None:
    """Write the tokenizer with the statistics of its latents, and beside it that of `best.ckpt`, where a run keeps one.

    Args:
        tokenizer: The trained weights.
        trainer: Has ended training; its folder gets the files.
        num_samples: Training images that are measured.
        per_channel_std: As in `TokenizerModule`.
    """
    last, best = _of_last_step(trainer), _best(trainer)
    how = trainer, num_samples, per_channel_std
    names = [EXPORT_NAME, *([BEST_NAME] if best in last else [])]
    _export(tokenizer.eval(), trainer.global_step, names, last, *how)
    if best is not None and best not in last:
        checkpoint = torch.load(best, map_location="cpu", weights_only=True)
        other = copy.deepcopy(tokenizer)
        other.load_state_dict({name: checkpoint["state_dict"][_PREFIX + name] for name in other.state_dict()})
        _export(other, checkpoint["global_step"], [BEST_NAME], [best], *how)


def _export(
    tokenizer: TrainableTokenizer,
    step: int,
    names: list[str],
    checkpoints: list[Path],
    trainer: Trainer,
    num_samples: int,
    per_channel_std: bool,
) -> None:
    """Set the statistics of the latents, put them into the checkpoints of these weights too, and write the files."""
    measure_latents(tokenizer, _plain_training_batches(trainer), num_samples, trainer, per_channel_std)
    if trainer.is_global_zero:
        store_statistics(tokenizer, checkpoints)
        for path in (Path(trainer.default_root_dir, name) for name in names):
            save_tokenizer(tokenizer, path, step)
            rank_zero_info(f"tokenizer exported to {path}")


def other_step(tokenizer: Tokenizer) -> str:
    """What is to be said of a tokenizer's file beside which its run has gone on, and was not exported; else nothing.

    A run that is continued, and killed before its end, leaves such checkpoints.

    Args:
        tokenizer: Has been loaded.
    """
    path = Path(getattr(tokenizer, "weights", None) or "")
    of_last_step = path.is_file() and path.name != BEST_NAME
    step = read_metadata(path).get("step") if of_last_step else None
    newest = newest_step(path.parent / "checkpoints", _PREFIX) if step is not None else None
    if newest is None or newest[1] == int(step):
        return ""
    return (
        f"{path} is the tokenizer of step {step}, and beside it {newest[0]} is of step {newest[1]}, which was not "
        "exported: scalear fit --ckpt_path last does that at its end"
    )


@torch.no_grad()
def measure_latents(
    tokenizer: TrainableTokenizer, batches: Iterable[Batch], num_samples: int, trainer: Trainer, per_channel: bool
) -> None:
    """Set the tokenizer's statistics to those of posterior samples, over images of all ranks.

    The moments of the Gaussians are averaged, which is what infinitely many samples of each would give.

    Args:
        tokenizer: Left alone if it has no posterior.
        batches: This rank's images.
        num_samples: Images of all ranks together; fewer if there are fewer.
        trainer: Tells ranks, precision and device.
        per_channel: A standard deviation for each channel; otherwise one for all, so that channels keep their
            relative size.
    """
    quota = -(-num_samples // trainer.world_size)
    device = tokenizer.latent_mean.device
    sums = in_float64(torch.zeros(3, tokenizer.latent_channels, device=device))  # count, mean, square
    for batch in batches:
        image_BCHW = batch.inputs[:quota].to(device)
        with trainer.precision_plugin.forward_context():
            posterior = tokenizer.posterior(image_BCHW)
        if posterior is None:
            return
        mean_BChw, variance_BChw = in_float64(posterior.mean_BChw), in_float64(posterior.logvar_BChw).exp()
        powers = torch.ones_like(mean_BChw), mean_BChw, mean_BChw.square() + variance_BChw
        sums += torch.stack([power.sum((0, 2, 3)) for power in powers])
        quota -= len(image_BCHW)
        if quota <= 0:
            break
    count, first, second = trainer.strategy.reduce(sums, reduce_op="sum")
    if not count.all():
        raise ValueError("no training images to measure the latents on")
    mean = first / count
    variance = second / count - mean.square()
    if not variance.isfinite().all():
        raise ValueError(
            "the latents of training images are not finite: the tokenizer has diverged; it is not exported"
        )
    tokenizer.latent_mean.copy_(mean)
    tokenizer.latent_std.copy_((variance if per_channel else variance.mean()).sqrt())


def store_statistics(tokenizer: Tokenizer, checkpoints: list[Path]) -> None:
    """Write the statistics into checkpoints of these weights, which were saved before they were measured.

    Checkpoint and exported file then are the same tokenizer, with the same fingerprint.
    """
    for path in checkpoints:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for state in ("state_dict", "current_model_state"):  # the second is where weight averaging keeps the weights
            for name in STATISTICS:
                if state in checkpoint:
                    checkpoint[state][_PREFIX + name] = getattr(tokenizer, name).cpu()
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def _of_last_step(trainer: Trainer) -> list[Path]:
    """Checkpoints of the weights that training ended with."""
    saved = [str(checkpoint_folders(trainer)[0] / INTERRUPTED)]
    for callback in trainer.checkpoint_callbacks:
        # A best.ckpt of this step that was not saved now may have other weights, of another end of the run.
        if isinstance(callback, BestCheckpoint) and callback._last_global_step_saved != trainer.global_step:
            continue
        if isinstance(callback, ModelCheckpoint):
            saved += [callback.best_model_path, callback.last_model_path]
    files = filter(Path.is_file, {Path(path).resolve() for path in saved if path})
    return [path for path in files if metadata(path).get("global_step") == trainer.global_step]


def _best(trainer: Trainer) -> Path | None:
    """`best.ckpt`, if this run keeps one and it is a file."""
    keepers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]
    paths = [Path(keeper.best_model_path).resolve() for keeper in keepers]
    return next(filter(Path.is_file, paths), None)


def _plain_training_batches(trainer: Trainer) -> Iterable[Batch]:
    """Training images without augmentation, as they are served for caching latents."""
    data = trainer.datamodule
    if data is None:
        return trainer.train_dataloader
    return data.predict_dataloader()[data.predict_splits.index(data.train_split)]
