"""What a generator's training shows in TensorBoard.

Legend: B batch, C image channels, H W pixels, h w the latent.
"""

import torch
from torch import Tensor

from scalear.data.batch import Batch
from scalear.draws import SeededDraws
from scalear.training.generator_module import GeneratorModule


@torch.no_grad()
def sampled_images(module: GeneratorModule, label_B: Tensor) -> Tensor:
    """Images of the given labels, image_BCHW in [-1, 1], with the seeds (seed, 0), (seed, 1) ..."""
    training = module.generator.training
    module.generator.eval()
    with module.trainer.precision_plugin.forward_context():
        streams = [(module.seed, index) for index in range(len(label_B))]
        images = module.generate_images(label_B.to(module.device), streams)
    module.generator.train(training)
    return images


@torch.no_grad()
def pyramid_images(module: GeneratorModule, batch: Batch, count: int) -> Tensor:
    """The first real images of a batch at every scale, coarse to fine, each scale a row of `count` images."""
    draws = SeededDraws([(module.seed, index) for index in range(len(batch))], module.device)
    latent_BChw = module.latent(batch, draws)[:count]
    pyramid = module.generator.pyramid.build(latent_BChw, module.generator.schedule)
    rows = []
    for k in range(pyramid.schedule.num_scales):
        coarse = module.generator.pyramid.latent(pyramid.targets[: k + 1], pyramid.schedule)
        rows.append(module.tokenizer.decode(torch.nn.functional.interpolate(coarse, latent_BChw.shape[-2:])))
    return torch.cat(rows)
