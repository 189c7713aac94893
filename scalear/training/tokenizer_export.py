"""The end of a tokenizer's training: its latents are measured, and it becomes a file."""

from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from scalear.data.batch import Batch
from scalear.tokenizers.trainable import TrainableTokenizer
from scalear.tokenizers.weights import save_tokenizer
from scalear.training.latent_statistics import measure_latents, store_statistics

EXPORT_NAME = "tokenizer.safetensors"


@torch.no_grad()
def export_tokenizer(tokenizer: TrainableTokenizer, trainer: Trainer, num_samples: int, per_channel_std: bool) -> None:
    """Set the statistics of the latents, put them into the last checkpoints too, and write the tokenizer.

    Args:
        tokenizer: The trained weights.
        trainer: Has ended training; its folder gets the file.
        num_samples: Training images that are measured.
        per_channel_std: As in `TokenizerModule`.
    """
    tokenizer.eval()
    measure_latents(tokenizer, _plain_training_batches(trainer), num_samples, trainer, per_channel_std)
    if trainer.is_global_zero:
        store_statistics(tokenizer, "tokenizer.", trainer)
        path = Path(trainer.default_root_dir, EXPORT_NAME)
        save_tokenizer(tokenizer, path)
        rank_zero_info(f"tokenizer exported to {path}")


def _plain_training_batches(trainer: Trainer) -> Iterable[Batch]:
    """Training images without augmentation, as they are served for caching latents."""
    data = trainer.datamodule
    if data is None:
        return trainer.train_dataloader
    return data.predict_dataloader()[data.predict_splits.index(data.train_split)]
