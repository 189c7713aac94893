"""The bottleneck of KL-regularised autoencoders: a Gaussian for every cell (Kingma and Welling 2014; LDM's KL-16)."""

import torch
from torch import Tensor

from scalear.tokenizers.bottleneck import Bottleneck, Passage, Posterior, TrainingRequest


class Gaussian(Bottleneck):
    """Mean and log-variance of every latent number. Shapes as in `scalear.tokenizers.bottleneck`.

    Args:
        latent_channels: C; the encoder makes twice as many.
    """

    penalties = frozenset({"kl"})
    linear_start = -4.0  # log-variance: little noise

    def __init__(self, latent_channels: int) -> None:
        super().__init__(latent_channels, 2 * latent_channels, torch.float16)

    def latent(self, moments_BMhw: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        posterior = self.posterior(moments_BMhw)
        return posterior.mean_BChw if noise_BChw is None else posterior.sample(noise_BChw)

    def forward(self, moments_BMhw: Tensor, request: TrainingRequest, num_elements: int) -> list[Passage]:
        posterior = self.posterior(moments_BMhw)
        noise_BChw = request.draws.normal("posterior", *posterior.mean_BChw.shape[1:])
        return [Passage(posterior.sample(noise_BChw), {"kl": posterior.kl() / num_elements})]

    def posterior(self, moments_BMhw: Tensor) -> Posterior:
        return Posterior.from_moments(moments_BMhw)
