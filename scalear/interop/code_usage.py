"""How much of a codebook is used, by the counts that official tokenizer files carry.

Training here measures usage itself (`scalear.training.tokenizer.metrics`); these are the official definitions.

Shapes: S scales, V codes.
"""

import torch
from torch import Tensor

_MARGIN = 0.08  # VAR: a code counts as used from this share of the hits that it would have if all had the same


def var_usage(hits_SV: Tensor, num_vectors: int) -> Tensor:
    """Percent of the codes that each scale uses, (S,): VAR's `usages`.

    Args:
        hits_SV: Moving averages of hits per batch, `quantize.ema_vocab_hit_SV`.
        num_vectors: Vectors of a batch at full size, over all ranks.
    """
    return 100 * (hits_SV >= num_vectors / hits_SV.shape[1] * _MARGIN).float().mean(dim=1)


def llamagen_usage(recent: Tensor, codes: Tensor, num_codes: int) -> float:
    """Share of the codes that are among the last ones, LlamaGen's `codebook_usage`.

    Args:
        recent: The codes of the past, oldest first, `quantize.codebook_used`.
        codes: The codes of one more batch, which push the oldest out.
        num_codes: Size of the codebook.
    """
    pushed = torch.cat([recent, codes.flatten().to(recent.dtype)])[-len(recent) :]
    return len(pushed.unique()) / num_codes
