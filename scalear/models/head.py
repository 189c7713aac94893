"""What the generator asks of a head: the loss of every scale, and a sample of one scale, from the semantics.

Legend: B batch, K scales, L tokens of all scales, l of one scale, D semantics.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from scalear.draws import Draws
from scalear.guidance import Guidance
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule


class Head(nn.Module, ABC):
    """Predicts the content of a scale: latent tokens (B, l, C), or codes (B, l).

    In YAML built without its first three arguments: the content of a scale, D and the schedule of the model.

    Attributes:
        sampling_type: Class of the settings that `sample` takes.
    """

    sampling_type: type[Sampling]

    @abstractmethod
    def loss(
        self, hidden_BLD: Tensor, targets: list[Tensor], schedule: ScaleSchedule, draws: Draws
    ) -> dict[str, Tensor]:
        """Means over the tokens of each scale, (K,) float32 each: "loss", and what else is worth logging."""

    @abstractmethod
    def scale_weights(self, schedule: ScaleSchedule) -> list[float]:
        """Weight of each scale in the total."""

    @abstractmethod
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
        """Content of scale k.

        Args:
            hidden_BlD: Semantics of the scale.
            hidden_uncond_BlD: Semantics of the null class, or None where guidance is off altogether.
            k: The scale.
            schedule: All scales.
            draws: Random numbers, named by k.
            sampling: Settings of type `sampling_type`.
            guidance: Classifier-free guidance.
        """
