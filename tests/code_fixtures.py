"""Tiny generators of codes, trained for two steps through the real command line on a tokenizer of random weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from cli_fixtures import CLASSIFIER, NUM_CLASSES, run
from tokenizer_fixtures import tokenizer_part

from scalear.class_paths import Part, build
from scalear.tokenizers.autoencoder import ConvTokenizer
from scalear.tokenizers.quantizer import VectorQuantizer
from scalear.tokenizers.residual import ResidualQuantizer
from scalear.tokenizers.weights import save_tokenizer

NUM_CODES, DIM = 24, 32
_CODES = {"latent_channels": 4, "num_codes": NUM_CODES}
_FLEXVAR = tokenizer_part(VectorQuantizer, _CODES)
_VAR = tokenizer_part(ResidualQuantizer, _CODES | {"scales": "1,2,4,8"})
_EXTRACTOR = {
    "class_path": "scalear.evaluation.extractors.ClassifierFeatures",
    "init_args": {"weights": CLASSIFIER},
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
    return _train(folder, flexvar_config(folder, images), _FLEXVAR)


def prepare_flexvar(folder: Path, images: Path) -> Path:
    """The config of the same, with its tokenizer beside it, before it is trained."""
    return _prepared(folder, flexvar_config(folder, images), _FLEXVAR)


def train_var(folder: Path, images: Path) -> CodeRun:
    """VAR on the same images."""
    parts = {"pyramid": "scalear.pyramid.ResidualPyramid", "positions": "scalear.models.positions.LevelPositions"}
    return _train(folder, _generator_config(folder, images, parts, {}, _VAR), _VAR)


def flexvar_config(folder: Path, images: Path) -> dict:
    """What `scalear fit` takes; the tokenizer is in the same folder."""
    positions = {"class_path": "scalear.models.positions.GridPositions", "init_args": {"side": 8}}
    parts = {"pyramid": "scalear.pyramid.CodePyramid", "positions": positions}
    schedules = {"class_path": "scalear.schedules.PaperSchedules", "init_args": {"side": 8, "max_between": 8}}
    return _generator_config(folder, images, parts, {"schedules": schedules}, _FLEXVAR)


def tokenizer_config(folder: Path, images: Path) -> dict:
    """A run that trains FlexVAR's tokenizer and writes its latents."""
    model = {
        "tokenizer": _FLEXVAR,
        "optimizer": {"lr": 0.001, "warmup_steps": 1, "total_steps": 2},
        "loss": {
            "class_path": "scalear.tokenizers.objective.TokenizerLoss",
            "init_args": {"penalty_weights": {"codebook": 1.0, "commitment": 0.25}},
        },
        "rfid": {"class_path": "scalear.evaluation.fid.FeatureFID", "init_args": {"extractor": _EXTRACTOR}},
        "scales": [1, 2, 4, 8],
    }
    callbacks = ["scalear.training.tokenizer.latent_writer.LatentWriter"]
    return _config("scalear.training.tokenizer.module.TokenizerModule", model, folder, images, callbacks)


def _generator_config(folder: Path, images: Path, parts: dict, settings: dict, tokenizer: Part) -> dict:
    transformer = {
        "dim": DIM,
        "depths": [2],
        "num_classes": NUM_CLASSES,
        "scales": [1, 2, 4, 8],
        "positions": parts["positions"],
        "block": {"class_path": "scalear.models.var_block.VARBlock", "init_args": {"num_heads": 2}},
        "norm": {"class_path": "scalear.models.norms.ModulatedNorm"},
    }
    report = {"extractor": _EXTRACTOR, "data_dir": str(images)}
    model = {
        "pyramid": parts["pyramid"],
        "transformer": transformer,
        "head": "scalear.models.token_head.TokenHead",
        "tokenizer": {
            "class_path": tokenizer["class_path"],
            "init_args": tokenizer["init_args"] | {"weights": str(folder / "tokenizer.safetensors")},
        },
        "optimizer": {"lr": 0.01, "warmup_steps": 1, "schedule": "constant", "total_steps": 2},
        "sampling": {"class_path": "scalear.token_sampling.TokenSampling", "init_args": {"top_k": 12}},
        "guidance": {"weight": 2.0},
        "samples": {"num_per_class": 2},
        "report": {"class_path": "scalear.training.generator.report.SampleReport", "init_args": report},
        "sample_posterior": False,
        **settings,
    }
    return _config("scalear.training.generator.module.GeneratorModule", model, folder, images, [])


def _config(class_path: str, model: dict, folder: Path, images: Path, callbacks: list[str]) -> dict:
    return {
        "seed_everything": 0,
        "model": {"class_path": class_path, "init_args": model},
        "data": {
            "class_path": "scalear.data.datamodule.ShardDataModule",
            "init_args": {"data_dir": str(images), "batch_size": 8, "num_workers": 0},
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "default_root_dir": str(folder),
            "limit_val_batches": 0,
            "callbacks": [{"class_path": path} for path in ["scalear.training.checkpoints.RunCheckpoint", *callbacks]],
        },
    }


def _train(folder: Path, config: dict, part: Part) -> CodeRun:
    assert run("fit", "-c", _prepared(folder, config, part)) == 0
    return CodeRun(folder)


def _prepared(folder: Path, config: dict, part: Part) -> Path:
    torch.manual_seed(0)
    tokenizer = build(ConvTokenizer, part)
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    save_tokenizer(tokenizer, folder / "tokenizer.safetensors")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
