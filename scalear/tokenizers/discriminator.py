"""PatchGAN discriminator (Isola et al. 2017) and the adversarial loss of VQGAN (Esser et al. 2021), both with hinge."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalear.idle_settings import refuse_idle
from scalear.tokenizers.trainable import Reconstruction


class PatchDiscriminator(nn.Sequential):
    """image_BCHW -> a logit for every patch (B, 1, h, w); high means real.

    Args:
        image_channels: Of the images to judge.
        channels: Width of the first layer; it doubles per layer, up to 8 times.
        num_layers: Convolutions with stride 2. 3 sees patches of 70 pixels; images need 3 * 2^num_layers pixels
            per side, so 2 is for 16x16 and 1 for 8x8.
    """

    def __init__(self, image_channels: int, channels: int = 64, num_layers: int = 3) -> None:
        widths = [channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(image_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            stride = 2 if i < num_layers else 1
            layers += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.minimum_size = 3 * 2**num_layers
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 4:
                nn.init.normal_(parameter, 0.0, 0.02)

    def check_size(self, image_size: tuple[int, int]) -> None:
        """Raise ValueError if images of (H, W) leave no patch to judge."""
        if min(image_size) < self.minimum_size:
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} are too small for this discriminator, which needs "
                f"{self.minimum_size} pixels per side: lower loss.adversarial.num_layers or remove `adversarial`"
            )


class AdversarialLoss(nn.Module):
    """Generator and discriminator losses as one sum, so that one optimizer step updates both at once.

    The generator's term sees the discriminator's weights as constants and the discriminator's term sees the
    reconstruction as a constant: the gradients are those of two alternating steps on the same batch.

    Args:
        image_channels: Of the images, 1 or 3.
        weight: Of the generator's term.
        start_step: Optimizer step from which it counts; before, the reconstruction must become good enough.
        adaptive: Scale the generator's term so that its gradient at the decoder's last layer is as long as that of
            the other terms (VQGAN); `weight` comes on top.
        max_ratio: Most that this scales by. LDM's code, whose other terms are sums over the image, allows 1e4, which
            is 1e4 over the numbers of an image in our means.
        channels: Width of the discriminator's first layer.
        num_layers: Its convolutions with stride 2; images need 3 * 2^num_layers pixels per side.
    """

    def __init__(
        self,
        image_channels: int = 3,
        weight: float = 0.5,
        start_step: int = 50_000,
        adaptive: bool = True,
        max_ratio: float = 1e4,
        channels: int = 64,
        num_layers: int = 3,
    ) -> None:
        super().__init__()
        if not adaptive:
            refuse_idle(AdversarialLoss, "loss.adversarial.adaptive is false", max_ratio=max_ratio)
        self.weight = weight
        self.start_step = start_step
        self.adaptive = adaptive
        self.max_ratio = max_ratio
        self.discriminator = PatchDiscriminator(image_channels, channels, num_layers)

    def forward(
        self, reconstructions: Sequence[Reconstruction], other_loss: Tensor, last_layer: nn.Parameter, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to `other_loss`, and its parts for the log: means over the sizes that are large enough."""
        if step < self.start_step:
            # Zero, but with a gradient for every weight: DDP waits for all of them.
            return 0.0 * sum(p.sum() for p in self.discriminator.parameters()), {}
        self.discriminator.check_size(reconstructions[0].target_BCHW.shape[-2:])  # the full size comes first
        judged = [r for r in reconstructions if min(r.target_BCHW.shape[-2:]) >= self.discriminator.minimum_size]
        self.discriminator.requires_grad_(False)
        generator_loss = -_mean(self.discriminator(r.image_BCHW) for r in judged)
        self.discriminator.requires_grad_(True)
        weight = generator_loss.new_tensor(self.weight)
        if self.adaptive:
            ratio = _gradient_ratio(other_loss, generator_loss, last_layer)
            weight = weight * ratio.clamp(max=self.max_ratio)
        real = [self.discriminator(r.target_BCHW) for r in judged]
        fake = [self.discriminator(r.image_BCHW.detach()) for r in judged]
        discriminator_loss = 0.5 * (_mean(F.relu(1.0 - x) for x in real) + _mean(F.relu(1.0 + x) for x in fake))
        terms = {
            "generator": generator_loss,
            "discriminator": discriminator_loss,
            "adversarial_weight": weight,
            "logit_real": _mean(real),
            "logit_fake": _mean(fake),
        }
        return weight * generator_loss + discriminator_loss, {name: value.detach() for name, value in terms.items()}


def _mean(logits: Iterable[Tensor]) -> Tensor:
    """Mean over each batch of logits, then over the batches."""
    return torch.stack([batch.mean() for batch in logits]).mean()


def _gradient_ratio(numerator: Tensor, denominator: Tensor, parameter: nn.Parameter) -> Tensor:
    """Length of one loss's gradient at `parameter` over that of the other, a constant."""
    above, below = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in (numerator, denominator))
    return (above.norm() / (below.norm() + 1e-4)).detach()
