"""A diffusion head: epsilon prediction on the tokens of a scale, around any velocity network (FlowAR, table 5).

Legend: B batch, l tokens of one scale, C channels of a token, D semantics.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scalear.diffusion import DDIM, NUM_STEPS, NoiseSchedule, levels
from scalear.models.denoising_head import DenoisingHead, Predict
from scalear.models.layers import cached_table
from scalear.models.velocity import VelocityNetwork
from scalear.pyramid import Content
from scalear.scales import ScaleSchedule


class DiffusionHead(DenoisingHead):
    """Learns the noise in tokens after any of 1000 steps that add some (Ho et al., 2020, eq. 14), and takes it out.

    Args:
        content: Of a scale: latents.
        cond_dim: D, width of the semantics.
        schedule: The scales of the model.
        network: Class of the network, here of noise, any with `prepare` and `forward`; called with (C, D, schedule).
        noise_schedule: How noise and data mix after each step: `cosine` (MAR) or `linear`, see `scalear.diffusion`.
        scale_weighting: As in `DenoisingHead`.

    Raises:
        ValueError: The content is codes.
    """

    sampling_type = DDIM
    predicted = "noises"

    def __init__(
        self,
        content: Content,
        cond_dim: int,
        schedule: ScaleSchedule,
        network: Callable[[int, int, ScaleSchedule], VelocityNetwork],
        noise_schedule: NoiseSchedule = "cosine",
        scale_weighting: Literal["tokens", "scales"] = "tokens",
    ) -> None:
        super().__init__(content, cond_dim, schedule, network, scale_weighting)
        self.noise_schedule = noise_schedule

    def noise_levels(self, uniform_B: Tensor) -> Tensor:
        """Those of 1 to 1000 steps."""
        return ((NUM_STEPS * uniform_B).floor() + 1) / NUM_STEPS

    def example(self, noise_BlC: Tensor, data_BlC: Tensor, noise_level_B: Tensor) -> tuple[Tensor, Tensor]:
        step_B = (NUM_STEPS * noise_level_B).round().long()
        signal_B11, noise_B11 = _levels(self.noise_schedule, noise_BlC.device)[step_B, :, None, None].unbind(1)
        return signal_B11 * data_BlC + noise_B11 * noise_BlC, noise_BlC

    def solve(
        self, predict: Predict, noise_BlC: Tensor, times: list[float], sampling: DDIM, interval: tuple[float, ...]
    ) -> Tensor:
        return sampling.solve(predict, noise_BlC, times, self.noise_schedule)


@cached_table
def _levels(schedule: NoiseSchedule, device: torch.device) -> Tensor:
    return levels(schedule).float().to(device)  # cast first: some devices have no float64
