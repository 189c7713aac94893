"""What is measured: the parts of one config, built by the command line and handed over."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalear.data.batch import Batch
from scalear.hardware.machine import describe
from scalear.hardware.precision import MIXED_DTYPES, autocast
from scalear.image_model import ImageModel
from scalear.tokenizers.base import Tokenizer


@dataclass
class Subject:
    """The parts of a config.

    Attributes:
        module: The model of the config: a generator with its settings, or a tokenizer with its loss.
        data: The datamodule of the config; read by the jobs that need data only.
        precision: Of matrix products: `32-true`, `bf16-mixed` or `16-mixed`.
        device: Where the work is done.
    """

    module: nn.Module
    data: Any
    precision: str
    device: torch.device

    def __post_init__(self) -> None:
        self.module.to(self.device)

    @property
    def model(self) -> ImageModel | None:
        """What makes images; None where the config describes a tokenizer."""
        return getattr(self.module, "model", None)

    @property
    def tokenizer(self) -> Tokenizer:
        return (self.model or self.module).tokenizer

    def autocast(self) -> AbstractContextManager:
        """The trainer's mixed precision, or nothing."""
        return autocast(self.device, self.precision)

    @property
    def product_dtype(self) -> torch.dtype:
        """Of matrix products."""
        return MIXED_DTYPES.get(self.precision, torch.float32)

    def how(self) -> dict[str, Any]:
        """How the work is done, as records say it."""
        return {"threads": torch.get_num_threads(), "precision": self.precision, "machine": describe(self.device)}

    def image_size(self) -> tuple[int, int]:
        """Pixels (H, W) of a generator's images; those of the dataset for a tokenizer."""
        if self.model is None:
            return self.data.image_size, self.data.image_size
        return self.model.image_size()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents that the generator learns."""
        return self.tokenizer.latent_channels, *self.model.latent_size()

    def batches(self) -> Iterable[Batch]:
        """The training loader's batches without end."""
        while True:
            for batch in self.data.train_dataloader():
                yield batch
                self.data.position = batch.stream_end

    def latent(self, batch: Batch) -> Tensor:
        """Modes of a batch's latents."""
        return self.model.latent(batch.inputs.to(self.device), batch.kind == "latents")


Build = Callable[[list[str], torch.device], Subject]
"""Makes the parts of a config from its arguments."""


def fill_zeros(module: nn.Module) -> None:
    """Small random numbers where a fresh model has zeros: arithmetic on zeros may be quicker than on numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))
