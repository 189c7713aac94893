"""VAR's quantizer: every scale holds the codes of what the coarser ones are still missing (Tian et al. 2024, alg. 1-2).

Shapes: B batch, C latent channels, h w token map, l = h * w tokens, V codes.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalear.scales import ScaleSchedule
from scalear.tokenizers.bottleneck import Passage, Quantized, TrainingRequest
from scalear.tokenizers.quantizer import Quantizer


class ResidualQuantizer(Quantizer):
    """Sums token maps of growing size; each is enlarged and passed through a convolution phi first.

    f_hat, the sum so far, starts at 0; scale k quantises the area average of latent - f_hat.

    Args:
        latent_channels: C.
        num_codes: V, shared by all scales.
        scales: Sides or sizes of the token maps, coarse to fine; the last is the latent's.
        num_phis: Convolutions: 1 is shared by all scales, as many as scales gives each its own, numbers between are
            partially shared (VAR: 4 for 10 scales).
        phi_ratio: Weight of the convolution in phi(h) = (1 - ratio) h + ratio conv(h); 0 for none.
        normalise: Search by direction only; what is summed is the code as it is (VAR's `using_znorm`).

    Raises:
        ValueError: An argument is out of its range.
    """

    penalties = frozenset({"codebook", "commitment"})
    not_in_weights = frozenset({"scales"})  # VAR uses one tokenizer for its lists of 256 and of 512 px

    def __init__(
        self,
        latent_channels: int,
        num_codes: int,
        scales: str | list[int | list[int]],
        num_phis: int = 4,
        phi_ratio: float = 0.5,
        normalise: bool = False,
    ) -> None:
        super().__init__(latent_channels, num_codes, normalise)
        if num_phis < 1 or not 0 <= phi_ratio <= 1:
            raise ValueError(f"need num_phis >= 1 and phi_ratio in [0, 1], got {num_phis} and {phi_ratio}")
        self.schedule = ScaleSchedule.parse(scales)
        self.scales = str(self.schedule)
        self.num_phis = num_phis
        self.phi_ratio = phi_ratio
        count = num_phis if phi_ratio else 0
        self.phis = nn.ModuleList(nn.Conv2d(latent_channels, latent_channels, 3, padding=1) for _ in range(count))
        for conv in self.phis:  # begin as no phi; PyTorch's own start, which the official code has, trains more slowly
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)

    @property
    def vectors(self) -> Tensor:
        return self.codebook.float()

    def phi(self, k: int, num_scales: int, latent_BChw: Tensor) -> Tensor:
        """Convolution phi of scale k of `num_scales`, applied to latent_BChw at full size."""
        if not self.phi_ratio:
            return latent_BChw
        conv = self.phis[self.phi_index(k, num_scales)]
        smoothed_BChw = F.conv2d(latent_BChw, conv.weight.float(), conv.bias.float(), padding=1)
        return (1 - self.phi_ratio) * latent_BChw + self.phi_ratio * smoothed_BChw

    def phi_index(self, k: int, num_scales: int) -> int:
        """Which phi serves scale k: phis sit at ticks in (0, 1), scale k at k / (num_scales - 1); the first nearest.

        The ticks are VAR's: with four phis they lie a little further out than evenly.
        """
        edge = 1 / 3 / 4 if self.num_phis == 4 else 1 / 2 / self.num_phis
        ticks = np.linspace(edge, 1 - edge, self.num_phis)
        return int(np.argmin(np.abs(ticks - k / max(1, num_scales - 1))))

    def add(self, f_hat_BChw: Tensor, content: Tensor, k: int, schedule: ScaleSchedule) -> Tensor:
        """f_hat with scale k added: its codes (B, l) or weights (B, l, V), enlarged (bicubic) to f_hat's size."""
        size = f_hat_BChw.shape[-2:]
        h_BChw = self.embed(content, schedule.sizes[k])
        with torch.autocast(h_BChw.device.type, enabled=False):
            if h_BChw.shape[-2:] != size:
                h_BChw = F.interpolate(h_BChw, size=size, mode="bicubic")
            return f_hat_BChw + self.phi(k, schedule.num_scales, h_BChw)

    @torch.no_grad()
    def encode(self, latent_BChw: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """Codes (B, l) int64 of each scale.

        Raises:
            ValueError: The schedule does not end at the latent's size.
        """
        return [codes_Bl for codes_Bl, _, _ in self.steps(latent_BChw, schedule)]

    def quantize(self, latent_BChw: Tensor) -> Tensor:
        return [f_hat_BChw for _, f_hat_BChw in self.scale_by_scale(latent_BChw, self.schedule)][-1]

    def scale_by_scale(self, latent_BChw: Tensor, schedule: ScaleSchedule) -> Iterator[tuple[Tensor, Tensor]]:
        return ((codes_Bl, f_hat_BChw) for codes_Bl, _, f_hat_BChw in self.steps(latent_BChw, schedule))

    def forward(self, moments_BMhw: Tensor, request: TrainingRequest, num_elements: int) -> list[Passage]:
        return [self.passage(moments_BMhw)]

    def passage(self, latent_BChw: Tensor) -> Passage:
        """Quantise for training, straight through; penalties are the means over scales of those of the sum so far.

        That is VAR's loss: `codebook` pulls sums to latents, `commitment` latents to sums.
        """
        latent_BChw = latent_BChw.float()
        codes, vectors, sums = zip(*self.steps(latent_BChw, self.schedule), strict=True)
        errors = [
            ((f_hat - latent_BChw.detach()).square().mean(), (f_hat.detach() - latent_BChw).square().mean())
            for f_hat in sums
        ]
        codebook, commitment = torch.stack([torch.stack(pair) for pair in errors]).mean(0)
        straight_BChw = latent_BChw + (sums[-1] - latent_BChw).detach()
        penalties = {"codebook": codebook, "commitment": commitment}
        return Passage(straight_BChw, penalties, Quantized(list(codes), list(vectors)))

    def check_gradients(self) -> None:
        served = self.schedule.num_scales
        used = {self.phi_index(k, served) for k in range(served)}
        if self.phi_ratio and len(used) < self.num_phis:
            raise ValueError(
                f"{served} scales use {len(used)} of {self.num_phis} phis, but DDP waits for gradients of all: "
                f"set tokenizer.bottleneck.num_phis to 1 or {served}"
            )

    def steps(self, latent_BChw: Tensor, schedule: ScaleSchedule) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Codes (B, l), the vectors (B, l, C) that they replaced, and f_hat, scale by scale."""
        schedule.require_final(latent_BChw.shape[-2:])
        latent_BChw = latent_BChw.float()
        f_hat_BChw = torch.zeros_like(latent_BChw)
        for k, size in enumerate(schedule.sizes):
            rest_BChw = latent_BChw.detach() - f_hat_BChw.detach()
            if rest_BChw.shape[-2:] != size:
                rest_BChw = F.adaptive_avg_pool2d(rest_BChw, size)
            vectors_BlC = rest_BChw.flatten(2).transpose(1, 2)
            codes_Bl = self.nearest(vectors_BlC)
            f_hat_BChw = self.add(f_hat_BChw, codes_Bl, k, schedule)
            yield codes_Bl, vectors_BlC, f_hat_BChw
