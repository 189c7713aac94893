"""What flow matching and diffusion share: a network learns, from noisy tokens of a scale, what noise or data they hold.

Legend: B batch, K scales, L tokens of all scales given, l of one scale, C channels of a token, D semantics.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scalear.draws import Draws
from scalear.guidance import Guidance
from scalear.models.head import Head
from scalear.models.velocity import VelocityNetwork
from scalear.pyramid import Content
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule

Predict = Callable[[Tensor, float], Tensor]
"""Tokens x_BlC and a time t in [0, 1], of which 1 is data, to what the network predicts of them, guided."""


class DenoisingHead(Head):
    """Trains a network at random noise levels, and samples with it from pure noise to data.

    Subclasses say what a noisy scale is, what is predicted of it, and how that is followed; their `sampling_type` has
    `times`, as `FlowSolver` has.

    Args:
        content: Of a scale: latents.
        cond_dim: D, width of the semantics.
        schedule: The scales of the model.
        network: Class of the network, any with `prepare` and `forward`; called with (C, D, schedule).
        scale_weighting: What weighs the same in the total: all `tokens` (official code), or all `scales`.

    Attributes:
        predicted: What the network predicts, in the plural.

    Raises:
        ValueError: The content is codes.
    """

    predicted: str

    def __init__(
        self,
        content: Content,
        cond_dim: int,
        schedule: ScaleSchedule,
        network: Callable[[int, int, ScaleSchedule], VelocityNetwork],
        scale_weighting: Literal["tokens", "scales"] = "tokens",
    ) -> None:
        super().__init__()
        if content.num_codes is not None:
            raise ValueError(f"{type(self).__name__} predicts latents, not codes: take LatentPyramid")
        self.token_dim = content.dim
        self.scale_weighting = scale_weighting
        self.network = network(content.dim, cond_dim, schedule)

    @abstractmethod
    def noise_levels(self, uniform_B: Tensor) -> Tensor:
        """Noise levels 1 - t to train at, (B,), of uniform numbers in [0, 1)."""

    @abstractmethod
    def example(self, noise_BlC: Tensor, data_BlC: Tensor, noise_level_B: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy tokens, and what the network is to predict of them: (B, l, C) each."""

    @abstractmethod
    def solve(
        self, predict: Predict, noise_BlC: Tensor, times: list[float], sampling: Sampling, interval: tuple[float, ...]
    ) -> Tensor:
        """Noise to tokens, (B, l, C) float32.

        Args:
            predict: What the network predicts, in the dtype of the tokens given.
            noise_BlC: Pure noise.
            times: Of `sampling`.
            sampling: The settings.
            interval: The times at which guidance sets in and ends; empty without.
        """

    def loss(
        self, hidden_BLD: Tensor, targets: list[Tensor], schedule: ScaleSchedule, draws: Draws
    ) -> dict[str, Tensor]:
        """Squared error of each scale, the mean over tokens and channels.

        One noise level per sample and scale; draws `t_k` (for the noise level) and `noise_k`.
        """
        noisy, wanted, noise_levels = [], [], []
        for k, target_BlC in enumerate(targets):
            noise_level_B = self.noise_levels(draws.uniform(f"t_{k}"))
            noise_BlC = draws.normal(f"noise_{k}", *target_BlC.shape[1:])
            noisy_BlC, wanted_BlC = self.example(noise_BlC, target_BlC, noise_level_B)
            noisy.append(noisy_BlC)
            wanted.append(wanted_BlC)
            noise_levels.append(noise_level_B.to(noise_BlC.device, torch.float32))
        condition = self.network.prepare(hidden_BLD, schedule)
        predicted_BLC = self.network(torch.cat(noisy, dim=1), torch.stack(noise_levels, dim=1), condition, schedule)
        errors = schedule.split(predicted_BLC.float() - torch.cat(wanted, dim=1))
        return {"loss": torch.stack([error_BlC.square().mean() for error_BlC in errors])}

    def scale_weights(self, schedule: ScaleSchedule) -> list[float]:
        """Every token weighs as much as one of the last scale, 1 / n_K^2 (official code); or every scale 1."""
        if self.scale_weighting == "scales":
            return [1.0] * schedule.num_scales
        return [length / schedule.lengths[-1] for length in schedule.lengths]

    def sample(
        self,
        hidden_BlD: Tensor,
        hidden_uncond_BlD: Tensor | None,
        k: int,
        schedule: ScaleSchedule,
        draws: Draws,
        sampling: Sampling,
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

        def predict(x_BlC: Tensor, t: float) -> Tensor:
            state_dtype, x_BlC = x_BlC.dtype, x_BlC.to(noise_BlC.dtype)
            if not (guided and guidance.at_time(t)):
                return self.network(x_BlC, _noise_levels(t, x_BlC), alone, scale).to(state_dtype)
            x_both = torch.cat([x_BlC, x_BlC])
            predicted_both = self.network(x_both, _noise_levels(t, x_both), both, scale)
            cond, uncond = predicted_both.to(state_dtype).chunk(2)
            return uncond + weight * (cond - uncond)

        interval = (guidance.jump, guidance.end) if guided else ()
        times = sampling.times(k, schedule.num_scales, *interval)
        tokens_BlC = self.solve(predict, noise_BlC, times, sampling, interval)
        if not tokens_BlC.isfinite().all():  # only then look at every step, each of which waits for the device

            def finite(x_BlC: Tensor, t: float) -> Tensor:
                predicted_BlC = predict(x_BlC, t)
                step = sum(start <= t for start in times[:-1])
                schedule.require_finite(
                    k, predicted_BlC, self.predicted, f" in step {step} of {len(times) - 1}, t = {t:.3g}"
                )
                return predicted_BlC

            self.solve(finite, noise_BlC, times, sampling, interval)
            schedule.require_finite(k, tokens_BlC, "tokens")
        return tokens_BlC


def _noise_levels(t: float, x: Tensor) -> Tensor:
    return torch.full((x.shape[0], 1), 1.0 - t, dtype=torch.float32, device=x.device)
