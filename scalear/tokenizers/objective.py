"""What a tokenizer is trained to minimise.

Every term is a mean over the elements (C * H * W) of the images, so that weights mean the same at any image size
and equal those of LDM: its sums per image, divided by the number of elements.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from scalear.idle_settings import refuse_idle
from scalear.tokenizers.discriminator import AdversarialLoss
from scalear.tokenizers.perceptual import PerceptualDistance
from scalear.tokenizers.trainable import Reconstruction


class TokenizerLoss(nn.Module):
    """Weighted sum of reconstruction errors, bottleneck penalties, a perceptual distance and an adversarial loss.

    Args:
        l1_weight: Of the mean absolute error.
        l2_weight: Of the mean squared error.
        penalty_weights: Of each of the tokenizer's penalties, by name; default {"kl": 1e-6}. `kl` is in nats per
            image element, `codebook`, `commitment` and `entropy` are means over vectors.
        perceptual: Distance between images in the features of a frozen network; None for none.
        perceptual_weight: Of that distance.
        adversarial: The discriminator and when it starts; None for none.
        size_exponent: Of several sizes each weighs as its number of pixels to this power: 0 for all sizes alike, 1
            for all pixels alike.
    """

    def __init__(
        self,
        l1_weight: float = 1.0,
        l2_weight: float = 0.0,
        penalty_weights: dict[str, float] | None = None,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 1.0,
        adversarial: AdversarialLoss | None = None,
        size_exponent: float = 0.0,
    ) -> None:
        super().__init__()
        if perceptual is None:
            refuse_idle(TokenizerLoss, "loss.perceptual is null", perceptual_weight=perceptual_weight)
        self.l1_weight = l1_weight
        self.l2_weight = l2_weight
        self.penalty_weights = {"kl": 1e-6} if penalty_weights is None else penalty_weights
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.adversarial = adversarial
        self.size_exponent = size_exponent

    def load_weights(self) -> None:
        """Read the weights of the perceptual network, if there is one."""
        if self.perceptual is not None:
            self.perceptual.load_weights()

    def forward(
        self, reconstructions: Sequence[Reconstruction], last_layer: nn.Parameter, step: int
    ) -> dict[str, Tensor]:
        """Scalar terms by name; `loss` is their weighted sum, the only one to differentiate.

        Every size counts with all its terms; sizes below those that the perceptual distance or the
        discriminator accept (a single cell decodes to few pixels) go without that one.

        Args:
            reconstructions: What the tokenizer made of images, at one size or several.
            last_layer: The decoder's last weight, for the adaptive weight of the adversarial loss.
            step: Optimizer step.
        """
        loss, terms = 0.0, {}
        weights = [reconstruction.target_BCHW[0].numel() ** self.size_exponent for reconstruction in reconstructions]
        for reconstruction, weight in zip(reconstructions, weights, strict=True):
            loss_at_size, terms_at_size = self._without_adversary(reconstruction)
            loss = loss + weight / sum(weights) * loss_at_size
            suffix = f"_scale_{reconstruction.scale}" if reconstruction.scale else ""
            terms |= {name + suffix: term for name, term in terms_at_size.items()}
        if self.adversarial is not None:
            added, parts = self.adversarial(reconstructions, loss, last_layer, step)
            loss, terms = loss + added, terms | parts
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def _without_adversary(self, reconstruction: Reconstruction) -> tuple[Tensor, dict[str, Tensor]]:
        image_BCHW, target_BCHW = reconstruction.image_BCHW, reconstruction.target_BCHW
        error_BCHW = image_BCHW - target_BCHW
        terms = {"l1": error_BCHW.abs().mean(), "l2": error_BCHW.square().mean()}
        loss = self.l1_weight * terms["l1"] + self.l2_weight * terms["l2"]
        if self.perceptual is not None and min(target_BCHW.shape[-2:]) >= self.perceptual.minimum_size:
            terms["perceptual"] = self.perceptual(image_BCHW, target_BCHW).mean()
            loss = loss + self.perceptual_weight * terms["perceptual"]
        for name, penalty in reconstruction.penalties.items():
            terms[name] = penalty.mean()
            loss = loss + self._penalty_weight(name) * terms[name]
        return loss, terms

    def _penalty_weight(self, name: str) -> float:
        if name not in self.penalty_weights:
            raise ValueError(
                f"no weight for the tokenizer's penalty {name!r}: set loss.penalty_weights.{name}; "
                f"there are weights for {sorted(self.penalty_weights)}"
            )
        return self.penalty_weights[name]
