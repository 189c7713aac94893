"""The picture of FlexVAR's figure 3: which tokenizers survive that their latent is resized?"""

from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from scalear.data.batch import Batch
from scalear.evaluation.images import make_grid, save_png, to_uint8
from scalear.scales import ScaleSchedule
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.weights import open_tokenizer
from scalear.training.tokenizer.checks import tokenizer_of

PICTURE_NAME = "scales.png"


class ScalePicture(Callback):
    """`scalear test` of a tokenizer also draws images at all scales, into `scales.png` of the run's folder.

    One column per scale. For each image there is a row of the image itself, resized; then one of the tested
    tokenizer, and one of each other tokenizer. They all do the same, with residual codes too, as in the figure: the
    latent is averaged to the scale, every cell becomes its nearest code, and that is decoded.

    Args:
        scales: Latent sizes, coarse to fine. Default: those that the tokenizer is measured at.
        others: Files of tokenizers to compare with, as training leaves them, by name.
        num_images: Validation images shown.
        enlarge: Whole number that every pixel of the picture is enlarged by.
    """

    def __init__(
        self,
        scales: str | list[int | list[int]] | None = None,
        others: dict[str, str] | None = None,
        num_images: int = 3,
        enlarge: int = 2,
    ) -> None:
        if min(num_images, enlarge) < 1:
            raise ValueError(f"num_images and enlarge must be at least 1, got {num_images} and {enlarge}")
        self.schedule = None if scales is None else ScaleSchedule.parse(scales)
        self.others = others or {}
        self._tokenizers: list[Tokenizer] = []
        self.num_images = num_images
        self.enlarge = enlarge

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage != "test":
            return
        tested = tokenizer_of(pl_module, self)
        if tested.quantizer is None:
            raise ValueError(f"ScalePicture needs a tokenizer with a codebook, model.tokenizer is {tested.title}")
        self.schedule = self.schedule or pl_module.metrics.schedule
        if self.schedule is None:
            raise ValueError("ScalePicture needs scales: set its own, or model.scales")
        self._tokenizers = [tested]
        for path in self.others.values():
            other = open_tokenizer(path)
            if other.quantizer is None:
                raise ValueError(f"{path} must hold a tokenizer with a codebook, but it holds {other.title}")
            if other.image_channels != tested.image_channels:
                raise ValueError(
                    f"{path} is for images of {other.image_channels} channel(s), model.tokenizer of "
                    f"{tested.image_channels}: compare tokenizers of the same images"
                )
            self._tokenizers.append(other.eval().requires_grad_(False))

    def on_test_batch_start(self, trainer, pl_module, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        image_BCHW, stride = batch.inputs[: self.num_images], pl_module.tokenizer.stride
        rows = [[F.adaptive_avg_pool2d(image_BCHW, (h * stride, w * stride)) for h, w in self.schedule.sizes]]
        with trainer.precision_plugin.forward_context():
            for tokenizer in self._tokenizers:
                tokenizer.to(pl_module.device)
                rows.append([_reconstruction(tokenizer, image_BCHW, size) for size in self.schedule.sizes])
        full = image_BCHW.shape[-2:]
        cells = [F.interpolate(column, size=full)[i] for i in range(len(image_BCHW)) for row in rows for column in row]
        grid = make_grid(to_uint8(torch.stack(cells)), columns=self.schedule.num_scales, scale=self.enlarge)
        path = Path(trainer.default_root_dir, PICTURE_NAME)
        save_png(path, grid)
        names = ", ".join(["the image", "model.tokenizer", *self.others])
        rank_zero_info(f"\n{path}: columns are scales {self.schedule}, rows {names}")


def _reconstruction(tokenizer: Tokenizer, image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """image_BCHW -> latent averaged to (h, w) -> the nearest code of each cell -> image (FlexVAR fig. 3)."""
    codes_Bl = tokenizer.quantizer.codes(F.adaptive_avg_pool2d(tokenizer.encode(image_BCHW), size))
    return tokenizer.decode(tokenizer.quantizer.embed(codes_Bl, size))
