"""Heads by themselves, on tokens that the semantics say almost all of."""

import torch
from model_fixtures import seeded
from torch import Tensor

from scalear.draws import SeededDraws
from scalear.guidance import Guidance
from scalear.models.head import Head
from scalear.sampling import Sampling
from scalear.scales import ScaleSchedule

SHORT = ScaleSchedule.parse("1,2")


def examples(count: int) -> tuple[Tensor, list[Tensor]]:
    """Semantics, of 24 channels, and targets of the scales of SHORT, of 2."""
    hidden = torch.randn(count, SHORT.num_tokens, 24, generator=torch.Generator().manual_seed(count))
    targets = [hidden_BlD[..., :2] + hidden_BlD[..., :2].mean(1, keepdim=True) for hidden_BlD in SHORT.split(hidden)]
    return hidden, targets


def train(head: Head, steps: int = 60) -> list[float]:
    """Losses of a few steps on the same examples."""
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    hidden, targets = examples(64)
    losses = []
    for step in range(steps):
        draws = SeededDraws([(step, index) for index in range(64)])
        loss = head.loss(hidden, targets, SHORT, draws)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def agreement(head: Head, sampling: Sampling) -> float:
    """Correlation of samples of the second scale with what the semantics say."""
    hidden, targets = examples(64)
    hidden_BlD = SHORT.split(hidden)[1]
    sample_BlC = head.sample(hidden_BlD, None, 1, SHORT, seeded(64), sampling, Guidance())
    assert sample_BlC.isfinite().all() and sample_BlC.dtype == torch.float32
    return torch.corrcoef(torch.stack([sample_BlC.flatten(), targets[1].flatten()]))[0, 1].item()
