"""FlowAR's head: flow matching on the tokens of a scale, around any velocity network.

Legend: B batch, K scales, L tokens of all scales given, l of one scale, C channels of a token, D semantics.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scalear.draws import Draws
from scalear.flow import FlowSolver, interpolate, logit_normal
from scalear.guidance import Guidance
from scalear.models.head import Head
from scalear.models.velocity import VelocityNetwork
from scalear.pyramid import Content
from scalear.scales import ScaleSchedule


class FlowHead(Head):
    """Learns the velocity from noise to data (paper eq. 7 to 9), and follows it to sample.

    Args:
        content: Of a scale: latents.
        cond_dim: D, width of the semantics.
        schedule: The scales of the model.
        network: Class of the velocity network, any with `prepare` and `forward`; called with (C, D, schedule).
        time_sampling: Distribution of training times: `uniform` (paper), or `logit_normal` as in `scalear.flow`.

    Raises:
        ValueError: The content is codes.
    """

    sampling_type = FlowSolver

    def __init__(
        self,
        content: Content,
        cond_dim: int,
        schedule: ScaleSchedule,
        network: Callable[[int, int, ScaleSchedule], VelocityNetwork],
        time_sampling: Literal["uniform", "logit_normal"] = "uniform",
    ) -> None:
        super().__init__()
        if content.num_codes is not None:
            raise ValueError("FlowHead predicts latents, not codes: take LatentPyramid")
        self.token_dim = content.dim
        self.time_sampling = time_sampling
        self.network = network(content.dim, cond_dim, schedule)

    def loss(
        self, hidden_BLD: Tensor, targets: list[Tensor], schedule: ScaleSchedule, draws: Draws
    ) -> dict[str, Tensor]:
        """Flow-matching loss of each scale (eq. 9, mean instead of sum over tokens and channels).

        One time per sample and scale; draws `t_k` (for a noise level, 1 - t) and `noise_k`.
        """
        samples, noise_levels = [], []
        for k, target_BlC in enumerate(targets):
            noise_level_B = draws.uniform(f"t_{k}")
            if self.time_sampling == "logit_normal":
                noise_level_B = logit_normal(noise_level_B)
            noise_BlC = draws.normal(f"noise_{k}", *target_BlC.shape[1:])
            samples.append(interpolate(noise_BlC, target_BlC, (1.0 - noise_level_B)[:, None, None]))
            noise_levels.append(noise_level_B.to(noise_BlC.device, torch.float32))
        x_BLC = torch.cat([sample.x_t for sample in samples], dim=1)
        condition = self.network.prepare(hidden_BLD, schedule)
        velocity_BLC = self.network(x_BLC, torch.stack(noise_levels, dim=1), condition, schedule).float()
        errors = schedule.split(velocity_BLC - torch.cat([sample.velocity for sample in samples], dim=1))
        return {"loss": torch.stack([error_BlC.square().mean() for error_BlC in errors])}

    def scale_weights(self, schedule: ScaleSchedule) -> list[float]:
        """Every token weighs the same, one of the last scale 1 / n_K^2 (official code)."""
        return [length / schedule.lengths[-1] for length in schedule.lengths]

    def sample(
        self,
        hidden_BlD: Tensor,
        hidden_uncond_BlD: Tensor | None,
        k: int,
        schedule: ScaleSchedule,
        draws: Draws,
        sampling: FlowSolver,
        guidance: Guidance,
    ) -> Tensor:
        """Carry noise to the tokens of scale k, (B, l, C) float32; draws `noise_k`.

        The unconditional branch is evaluated only in steps that are guided; where it is, both branches read
        the conditional sample (official code).
        """
        weight, scale = guidance.at_scale(k, schedule), schedule.scale(k)
        guided = hidden_uncond_BlD is not None and weight != 1.0
        alone = self.network.prepare(hidden_BlD, scale)
        both = self.network.prepare(torch.cat([hidden_BlD, hidden_uncond_BlD]), scale) if guided else alone
        noise_BlC = draws.normal(f"noise_{k}", schedule.lengths[k], self.token_dim)

        def velocity(x_BlC: Tensor, t: float) -> Tensor:
            state_dtype, x_BlC = x_BlC.dtype, x_BlC.to(noise_BlC.dtype)
            if not (guided and guidance.at_time(t)):
                return self.network(x_BlC, _noise_levels(t, x_BlC), alone, scale).to(state_dtype)
            x_both = torch.cat([x_BlC, x_BlC])
            velocity_both = self.network(x_both, _noise_levels(t, x_both), both, scale)
            cond, uncond = velocity_both.to(state_dtype).chunk(2)
            return uncond + weight * (cond - uncond)

        interval = (guidance.jump, guidance.end) if guided else ()
        times = sampling.times(k, schedule.num_scales, *interval)
        tokens_BlC = sampling.solve(velocity, noise_BlC, times, *interval)
        if not tokens_BlC.isfinite().all():  # only then look at every step, each of which waits for the device

            def finite_velocity(x_BlC: Tensor, t: float) -> Tensor:
                velocity_BlC = velocity(x_BlC, t)
                step = sum(start <= t for start in times[:-1])
                schedule.require_finite(
                    k, velocity_BlC, "velocities", f" in step {step} of {len(times) - 1}, t = {t:.3g}"
                )
                return velocity_BlC

            sampling.solve(finite_velocity, noise_BlC, times, *interval)
            schedule.require_finite(k, tokens_BlC, "tokens")
        return tokens_BlC


def _noise_levels(t: float, x: Tensor) -> Tensor:
    return torch.full((x.shape[0], 1), 1.0 - t, dtype=torch.float32, device=x.device)
