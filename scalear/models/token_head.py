"""The head of VAR and FlexVAR: a distribution over the codebook for every token.

Legend: B batch, K scales, L tokens of all scales, l of one scale, D semantics, V codes.
"""

import torch
from torch import Tensor

from scalear.draws import Draws
from scalear.guidance import Guidance
from scalear.models.fused import code_losses
from scalear.models.head import Head
from scalear.models.layers import normal_linear, var_std
from scalear.scales import ScaleSchedule
from scalear.token_sampling import TokenSampling


class TokenHead(Head):
    """Linear map to logits. The transformer's last norm is the adaptive one, so that nothing else is needed.

    Args:
        vocab_size: V, codes of the tokenizer.
        cond_dim: D, width of the semantics.
    """

    sampling_type = TokenSampling

    def __init__(self, vocab_size: int, cond_dim: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.cond_dim = cond_dim
        self.output_proj = normal_linear(cond_dim, vocab_size, 0.02 * var_std(cond_dim))

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """logits_BLV, float32."""
        return self.output_proj(hidden_BLD).float()

    def check_codes(self, num_codes: int | None) -> None:
        if num_codes is None:
            raise ValueError("TokenHead predicts codes: take CodePyramid (FlexVAR) or ResidualPyramid (VAR)")
        if num_codes != self.vocab_size:
            raise ValueError(
                f"the head's vocab_size is {self.vocab_size}, but the tokenizer's codebook has {num_codes} codes: "
                "they must be equal"
            )

    def loss(
        self, hidden_BLD: Tensor, targets: list[Tensor], schedule: ScaleSchedule, draws: Draws
    ) -> dict[str, Tensor]:
        """Cross entropy in nats, and the share of tokens whose likeliest code is the right one. No draws."""
        logits_BLV, code_BL = self.output_proj(hidden_BLD), torch.cat(targets, dim=1)
        loss_BL = code_losses(logits_BLV, code_BL)
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
