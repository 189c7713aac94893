"""Tiny generators of codes, trained for two steps through the real command line on a tokenizer of random weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from cli_fixtures import NUM_CLASSES, run

from scalear.tokenizers.files import save_tokenizer
from scalear.tokenizers.vq import ResidualVQTokenizer, VQTokenizer

NUM_CODES, DIM = 24, 32
_TOKENIZER = {
    "image_channels": 1,
    "latent_channels": 4,
    "num_codes": NUM_CODES,
    "channels": 32,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "patch_size": 4,
}


@dataclass
class CodeRun:
    """A run's folder: config.yaml, tokenizer.safetensors, checkpoints/last.ckpt."""

    folder: Path

    @property
    def model(self) -> list[str]:
        """What commands on the trained model take."""
        checkpoint = self.folder / "checkpoints" / "last.ckpt"
        return [f"--config={self.folder / 'config.yaml'}", f"--ckpt_path={checkpoint}"]


def train_flexvar(folder: Path, images: Path) -> CodeRun:
    """FlexVAR on 8x8 codes of 32x32 images, trained on random scales."""
    parts = {"pyramid": "scalear.pyramid.CodePyramid", "positions": "scalear.models.positions.GridPositions"}
    schedules = {"class_path": "scalear.schedules.PaperSchedules", "init_args": {"side": 8}}
    return _train(folder, images, VQTokenizer(**_TOKENIZER), parts, {"schedules": schedules})


def train_var(folder: Path, images: Path) -> CodeRun:
    """VAR on the same images."""
    parts = {"pyramid": "scalear.pyramid.ResidualPyramid", "positions": "scalear.models.positions.LevelPositions"}
    return _train(folder, images, ResidualVQTokenizer(**_TOKENIZER, scales=[1, 2, 4, 8]), parts, {})


def _train(folder: Path, images: Path, tokenizer, parts: dict[str, str], settings: dict) -> CodeRun:
    torch.manual_seed(0)
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    weights = folder / "tokenizer.safetensors"
    save_tokenizer(tokenizer, weights)
    transformer = {
        "context_dim": 4,
        "dim": DIM,
        "depths": [2],
        "num_classes": NUM_CLASSES,
        "scales": [1, 2, 4, 8],
        "positions": {"class_path": parts["positions"]},
        "block": {"class_path": "scalear.models.var_block.VARBlock", "init_args": {"num_heads": 2}},
        "norm": {"class_path": "scalear.models.norms.ModulatedNorm"},
    }
    generator = {
        "transformer": {"class_path": "scalear.models.transformer.ScaleTransformer", "init_args": transformer},
        "head": {
            "class_path": "scalear.models.token_head.TokenHead",
            "init_args": {"vocab_size": NUM_CODES, "cond_dim": DIM},
        },
        "pyramid": {"class_path": parts["pyramid"]},
    }
    residual = {"scales": [1, 2, 4, 8]} if isinstance(tokenizer, ResidualVQTokenizer) else {}
    model = {
        "generator": {"class_path": "scalear.models.generator.Generator", "init_args": generator},
        "tokenizer": {
            "class_path": f"scalear.tokenizers.vq.{type(tokenizer).__name__}",
            "init_args": _TOKENIZER | residual | {"weights": str(weights)},
        },
        "optimizer": {"lr": 0.01, "warmup_steps": 1, "schedule": "constant", "total_steps": 2},
        "sampling": {"class_path": "scalear.token_sampling.TokenSampling", "init_args": {"top_k": 12}},
        "guidance": {"weight": 2.0},
        "samples": {"num_per_class": 2},
        "sample_posterior": False,
        **settings,
    }
    config = {
        "seed_everything": 0,
        "model": {"class_path": "scalear.training.generator_module.GeneratorModule", "init_args": model},
        "data": {
            "class_path": "scalear.data.datamodule.ShardDataModule",
            "init_args": {"data_dir": str(images), "batch_size": 8, "num_workers": 0},
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "default_root_dir": str(folder),
            "limit_val_batches": 0,
            "callbacks": [{"class_path": "scalear.training.checkpoints.RunCheckpoint"}],
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert run("fit", "-c", path) == 0
    return CodeRun(folder)
