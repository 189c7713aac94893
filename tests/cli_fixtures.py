"""The Fashion-MNIST configs, shrunk: seconds from images to samples through the real command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from scalear.__main__ import main
from scalear.data.index import INDEX_NAME, DatasetIndex

ROOT = Path(__file__).parent.parent
NUM_CLASSES = 3
EMBEDDED = ROOT / "data/fashion-mnist"
CLASSIFIER = str(EMBEDDED / "classifier.safetensors")


def run(*args: str) -> int:
    """`scalear ARGS`, in this process."""
    return main([str(arg) for arg in args])


@dataclass
class Experiment:
    """Folders of a tiny experiment and the command lines that make them."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def latents(self) -> Path:
        return self.root / "kl" / "latents"

    @property
    def weights(self) -> Path:
        return self.root / "kl" / "tokenizer.safetensors"

    def tokenizer(self, folder: str | Path = "kl") -> list[str]:
        """Config and overrides of kl.yaml."""
        settings = _SHARED_TOKENIZER | {
            "model.rfid.extractor.weights": CLASSIFIER,
            "model.optimizer.warmup_steps": 1,
            "model.optimizer.total_steps": 4,
            "data.data_dir": self.images,
            "data.batch_size": 8,
            "trainer.max_steps": 3,
            "trainer.precision": "32-true",
            "trainer.default_root_dir": self.root / folder,
        }
        return ["-c", str(ROOT / "configs/fashion/kl.yaml"), *_typed(settings)]

    def code_tokenizer(self, kind: str, folder: str | Path) -> list[str]:
        """Config and overrides of vq.yaml or rvq.yaml."""
        settings = {
            "model.tokenizer.bottleneck.latent_channels": 4,
            "model.tokenizer.bottleneck.num_codes": 32,
            "model.tokenizer.shape.channels": 32,
            "model.tokenizer.shape.num_res_blocks": 1,
            "model.tokenizer.shape.patch_size": 8,
            "model.rfid.extractor.weights": CLASSIFIER,
            "model.optimizer.warmup_steps": 1,
            "model.optimizer.total_steps": 3,
            "data.data_dir": self.images,
            "data.batch_size": 8,
            "trainer.max_steps": 3,
            "trainer.log_every_n_steps": 1,
            "trainer.default_root_dir": self.root / folder,
        }
        if kind == "vq":
            settings |= {"model.tokenizer.shape.feature_channels": 8}
        else:
            settings |= {"model.tokenizer.bottleneck.num_phis": 3}
        return ["-c", str(ROOT / f"configs/fashion/{kind}.yaml"), *_typed(settings)]

    def generator(self, folder: str | Path) -> list[str]:
        """Config and overrides of flowar.yaml."""
        settings = _SHARED_TOKENIZER | {
            "model.tokenizer.weights": self.weights,
            "model.transformer.dim": 32,
            "model.transformer.block.num_heads": 2,
            "model.transformer.depths": [1, 1],
            "model.head.network.dim": 32,
            "model.head.network.depth": 1,
            "model.head.network.num_heads": 2,
            "model.optimizer.lr": 0.01,
            "model.optimizer.warmup_steps": 1,
            "model.optimizer.schedule": "constant",
            "model.sampling.num_steps": 3,
            "model.samples.num_per_class": 4,
            "model.samples.batch_size": 6,
            "model.report.extractor.weights": CLASSIFIER,
            "data.data_dir": self.images,
            "data.latents_dir": self.latents,
            "data.batch_size": 8,
            "trainer.max_steps": 4,
            "trainer.precision": "32-true",
            "trainer.log_every_n_steps": 1,
            "trainer.default_root_dir": self.root / folder,
        }
        return ["-c", str(ROOT / "configs/fashion/flowar.yaml"), *_typed(settings)]

    def checkpoint(self, folder: str | Path, name: str = "last") -> Path:
        return self.root / folder / "checkpoints" / f"{name}.ckpt"


_SHARED_TOKENIZER = {
    "model.tokenizer.bottleneck.latent_channels": 4,
    "model.tokenizer.shape.channels": 32,
    "model.tokenizer.shape.channel_multipliers": [1, 1],
    "model.tokenizer.shape.num_res_blocks": 1,
    "model.tokenizer.shape.patch_size": 4,
}


@contextmanager
def every_dataset_is_there() -> Iterator[None]:
    """Configs and pages name datasets that are not in the repository: read as if they were Fashion-MNIST."""
    load = DatasetIndex.load

    def load_or_pretend(directory: str | Path) -> DatasetIndex:
        return load(directory if Path(directory, INDEX_NAME).is_file() else EMBEDDED)

    with mock.patch.object(DatasetIndex, "load", load_or_pretend):
        yield


def _typed(settings: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def write_folders(root: Path, per_class: int = 16) -> None:
    """PNG files of 32x32 in one folder per class; classes differ in brightness."""
    generator = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(60 * label, 60 * label + 100, (32, 32)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
