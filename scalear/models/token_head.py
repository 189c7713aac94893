"""The head of VAR and FlexVAR: a distribution over the codebook for every token.

Legend: B batch, K scales, L tokens of all scales, l of one scale, D semantics, V codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scalear.draws import Draws
from scalear.guidance import Guidance
from scalear.models.head import Head
from scalear.models.layers import normal_linear, var_std
from scalear.pyramid import Content
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling


class TokenHead(Head):
    """Linear map to logits. The transformer's last norm is the adaptive one, so that nothing else is needed.

    Args:
        content: Of a scale: codes.
        cond_dim: D, width of the semantics.
        schedule: The scales of the model; not used.

    Raises:
        ValueError: The content is latents.
    """

    sampling_type = TokenSampling

    def __init__(self, content: Content, cond_dim: int, schedule: ScaleSchedule) -> None:
        super().__init__()
        if content.num_codes is None:
            raise ValueError("TokenHead predicts codes: take CodePyramid (FlexVAR) or ResidualPyramid (VAR)")
        self.output_proj = normal_linear(cond_dim, content.num_codes, 0.02 * var_std(cond_dim))

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """logits_BLV, float32."""
        return self.output_proj(hidden_BLD).float()

    def loss(
        self, hidden_BLD: Tensor, targets: list[Tensor], schedule: ScaleSchedule, draws: Draws
    ) -> dict[str, Tensor]:
        """Cross entropy in nats, and the share of tokens whose likeliest code is the right one. No draws."""
        logits_BLV, code_BL = self(hidden_BLD), torch.cat(targets, dim=1)
        loss_BL = F.cross_entropy(logits_BLV.flatten(0, 1), code_BL.flatten(), reduction="none").view_as(code_BL)
        right_BL = (logits_BLV.detach().argmax(-1) == code_BL).float()
        return {
            name: torch.stack([part_Bl.mean() for part_Bl in schedule.split(value_BL)])
            for name, value_BL in (("loss", loss_BL), ("accuracy", right_BL))
        }

    def scale_weights(self, schedule: ScaleSchedule) -> list[float]:
        """Every token weighs the same, all together 1 (official code)."""
        return [length / schedule.num_tokens for length in schedule.lengths]

    def sample(
        self,
        hidden_BlD: Tensor,
        hidden_uncond_BlD: Tensor | None,
        k: int,
        schedule: ScaleSchedule,
        draws: Draws,
        sampling: TokenSampling,
        guidance: Guidance,
    ) -> Tensor:
        """Codes (B, l) of scale k, or with `sampling.more_smooth` weights of codes (B, l, V)."""
        logits_BlV, weight = self(hidden_BlD), guidance.at_scale(k, schedule)
        if hidden_uncond_BlD is not None and weight != 1.0:
            logits_BlV = torch.lerp(self(hidden_uncond_BlD), logits_BlV, weight)
        return sampling.sample(logits_BlV, k, schedule, draws)
