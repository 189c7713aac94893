"""Parts that a config may name by their class alone: jsonargparse finds those that have been imported.

All that has a place in a config of scalear stands here; parts of other packages are named with their module.
"""

from scalear.data import datamodule, sources
from scalear.evaluation import extractors, fid, inception_score, kid, labels, manifold
from scalear.models import (
    blocks,
    diffusion_head,
    flow_head,
    injections,
    mamba,
    norms,
    per_token,
    positions,
    token_head,
    var_block,
)
from scalear.tokenizers import autoencoder, diffusers_adapters, discriminator, gaussian, perceptual, quantizer, residual
from scalear.training import checkpoints, classifier_module, ema
from scalear.training.generator import module as generator_module
from scalear.training.generator import sample_grid, sample_score
from scalear.training.tokenizer import codebook, latent_writer, scale_picture
from scalear.training.tokenizer import module as tokenizer_module

__all__ = [
    "autoencoder",
    "blocks",
    "checkpoints",
    "classifier_module",
    "codebook",
    "datamodule",
    "diffusion_head",
    "diffusers_adapters",
    "discriminator",
    "ema",
    "extractors",
    "fid",
    "flow_head",
    "gaussian",
    "generator_module",
    "inception_score",
    "injections",
    "kid",
    "labels",
    "latent_writer",
    "mamba",
    "manifold",
    "norms",
    "per_token",
    "perceptual",
    "positions",
    "quantizer",
    "residual",
    "sample_grid",
    "sample_score",
    "scale_picture",
    "sources",
    "token_head",
    "tokenizer_module",
    "var_block",
]
