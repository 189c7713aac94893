"""What velocity networks have in common."""

import pytest
import torch
from model_fixtures import make_network, randomise


def test_quantised_time_truncates_the_noise_level_to_thousandths():
    embedding = randomise(make_network(quantise_time=True)).time_embedding
    first, second, third = embedding(torch.tensor([0.4271, 0.4279, 0.428]))
    assert torch.equal(first, second) and not torch.equal(second, third)


def test_heads_must_share_the_width():
    with pytest.raises(ValueError, match="dim 33 is not a multiple of num_heads 2"):
        make_network(dim=33)
