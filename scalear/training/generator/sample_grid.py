"""What a generator's training shows in TensorBoard, or another logger that takes images.

Legend: B batch, C image channels, H W pixels, h w the latent.
"""

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from scalear.data.batch import Batch
from scalear.draws import SeededDraws
from scalear.evaluation.images import make_grid, to_uint8
from scalear.training.ema import averaged
from scalear.training.generator.module import GeneratorModule
from scalear.training.loggers import log_image


class SampleGrid(Callback):
    """Writes a grid of generated images with fixed seeds to TensorBoard, and once the pyramid of real ones.

    Args:
        every_n_steps: Optimizer steps between grids.
        num_per_class: Images of each class, one class per column.
        max_classes: Columns.
    """

    def __init__(self, every_n_steps: int = 500, num_per_class: int = 4, max_classes: int = 10) -> None:
        if min(every_n_steps, num_per_class, max_classes) < 1:
            raise ValueError(
                "every_n_steps, num_per_class and max_classes must be at least 1, got "
                f"{every_n_steps}, {num_per_class} and {max_classes}"
            )
        self.every_n_steps = every_n_steps
        self.num_per_class = num_per_class
        self.max_classes = max_classes
        self._step = 0

    def setup(self, trainer, pl_module, stage: str) -> None:
        if not isinstance(pl_module, GeneratorModule):
            raise ValueError(
                f"SampleGrid is for generators, not for a {type(pl_module).__name__}: remove it from trainer.callbacks"
            )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not trainer.is_global_zero or not trainer.loggers or trainer.global_step == self._step:
            return  # the same step again while gradients accumulate
        self._step = trainer.global_step
        if trainer.global_step == 1:
            columns = min(self.max_classes, len(batch))
            self._write(trainer, "pyramid/real", pyramid_images(pl_module, batch, columns), columns)
        if trainer.global_step % self.every_n_steps == 0:
            # Without classes there is the null class alone, whose label is 0.
            columns = min(self.max_classes, max(1, pl_module.model.num_classes))
            labels = torch.arange(columns).repeat(self.num_per_class)
            with averaged(trainer, pl_module):
                images = pl_module.generate_images(labels, pl_module.seed, range(len(labels)))
            self._write(trainer, "samples/fixed_seeds", images, columns)

    @staticmethod
    def _write(trainer, tag: str, images: torch.Tensor, columns: int) -> None:
        grid = make_grid(to_uint8(images), columns, scale=2)
        log_image(trainer.loggers, tag, grid, trainer.global_step)


@torch.no_grad()
def pyramid_images(module: GeneratorModule, batch: Batch, count: int) -> Tensor:
    """The first real images of a batch at every scale, coarse to fine, each scale a row of `count` images."""
    draws = SeededDraws.of_images(module.seed, range(len(batch)), module.device)
    model, latent_BChw = module.model, module.latent(batch, draws)[:count]
    targets = model.pyramid.build(latent_BChw, model.schedule).targets
    return torch.cat([model.image(targets[: k + 1]) for k in range(len(targets))])
