"""FlowAR's head: flow matching on the tokens of a scale, around any velocity network.

Legend: B batch, l tokens of one scale, C channels of a token, D semantics.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from scalear.flow import FlowSolver, interpolate, logit_normal
from scalear.models.denoising_head import DenoisingHead, Predict
from scalear.models.velocity import VelocityNetwork
from scalear.pyramid import Content
from scalear.scales import ScaleSchedule


class FlowHead(DenoisingHead):
    """Learns the velocity from noise to data (paper eq. 7 to 9), and follows it to sample.

    Args:
        content: Of a scale: latents.
        cond_dim: D, width of the semantics.
        schedule: The scales of the model.
        network: Class of the velocity network, any with `prepare` and `forward`; called with (C, D, schedule).
        time_sampling: Distribution of training times: `uniform` (paper), or `logit_normal` as in `scalear.flow`.
        scale_weighting: As in `DenoisingHead`.

    Raises:
        ValueError: The content is codes.
    """

    sampling_type = FlowSolver
    predicted = "velocities"

    def __init__(
        self,
        content: Content,
        cond_dim: int,
        schedule: ScaleSchedule,
        network: Callable[[int, int, ScaleSchedule], VelocityNetwork],
        time_sampling: Literal["uniform", "logit_normal"] = "uniform",
        scale_weighting: Literal["tokens", "scales"] = "tokens",
    ) -> None:
        super().__init__(content, cond_dim, schedule, network, scale_weighting)
        self.time_sampling = time_sampling

    def noise_levels(self, uniform_B: Tensor) -> Tensor:
        return logit_normal(uniform_B) if self.time_sampling == "logit_normal" else uniform_B

    def example(self, noise_BlC: Tensor, data_BlC: Tensor, noise_level_B: Tensor) -> tuple[Tensor, Tensor]:
        sample = interpolate(noise_BlC, data_BlC, (1.0 - noise_level_B)[:, None, None])
        return sample.x_t, sample.velocity

    def solve(
        self,
        predict: Predict,
        noise_BlC: Tensor,
        times: list[float],
        sampling: FlowSolver,
        interval: tuple[float, ...],
    ) -> Tensor:
        return sampling.solve(predict, noise_BlC, times, *interval)
