"""Models of the papers' sizes on this CPU: one forward, one backward and one sampled image of the shipped configs."""

import pytest
import torch
from config_fixtures import Parsed, arguments
from tokenizer_fixtures import VQ16

from scalear.draws import SeededDraws
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.quantizer import VectorQuantizer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowar-s", "flexvar-d16", "flexvar-mamba-d16"])
def test_runs(name):
    cli = Parsed(["fit", *arguments(f"imagenet256/{name}")])
    module = cli.parser.instantiate_classes(cli.config)["fit"].model
    model, draws = module.model, SeededDraws([(0, 0)])
    label = torch.tensor([207])
    with torch.no_grad():
        latent = model.tokenizer.encode(torch.rand(1, 3, 256, 256) * 2 - 1)
    loss = model.loss(latent, label, draws)
    loss.total.backward()
    gradients = [parameter.grad for parameter in model.generator.parameters()]
    assert loss.total.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        image = model.eval().sample(label, draws)
    assert image.shape == (1, 3, 256, 256) and image.isfinite().all() and image.abs().max() <= 1


def test_llamagens_own_release_has_as_many_parameters_as_ours():
    with torch.device("meta"):
        tokenizer = ConvTokenizer(VQ16, VectorQuantizer(8, 16_384), 3)
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 71_883_403
