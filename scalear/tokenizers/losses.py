"""What a tokenizer is trained to minimise.

Every term is a mean over the elements (C * H * W) of the images, so that weights mean the same at any image size
and equal those of LDM: its sums per image, divided by the number of elements.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Reconstruction:
    """One training pass of a tokenizer.

    Attributes:
        image_BCHW: The decoder's output, not clamped.
        penalties: What the bottleneck costs, by name; each (B,).
    """

    image_BCHW: Tensor
    penalties: dict[str, Tensor]


class TokenizerLoss(nn.Module):
    """Weighted sum of reconstruction errors and bottleneck penalties.

    Args:
        l1_weight: Of the mean absolute error.
        l2_weight: Of the mean squared error.
        penalty_weights: Of each of the tokenizer's penalties, by name. `kl`: nats per image element.
    """

    def __init__(
        self,
        l1_weight: float = 1.0,
        l2_weight: float = 0.0,
        penalty_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.l1_weight = l1_weight
        self.l2_weight = l2_weight
        self.penalty_weights = {"kl": 1e-6} if penalty_weights is None else penalty_weights

    def forward(self, image_BCHW: Tensor, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """Scalar terms by name; `loss` is their weighted sum, the only one to differentiate."""
        error_BCHW = reconstruction.image_BCHW - image_BCHW
        terms = {"l1": error_BCHW.abs().mean(), "l2": error_BCHW.square().mean()}
        loss = self.l1_weight * terms["l1"] + self.l2_weight * terms["l2"]
        for name, penalty_B in reconstruction.penalties.items():
            if name not in self.penalty_weights:
                raise ValueError(
                    f"no weight for the tokenizer's penalty {name!r}: set loss.penalty_weights.{name} "
                    f"(it has {sorted(self.penalty_weights)})"
                )
            terms[name] = penalty_B.mean()
            loss = loss + self.penalty_weights[name] * terms[name]
        return {"loss": loss} | terms
