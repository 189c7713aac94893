"""A small convolutional network, trained on a data set itself, whose features measure its images offline.

Shape suffixes: `B` batch, `C` channels, `H W` pixels, `F` features, `K` classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scalear.data.index import INDEX_NAME, DatasetIndex
from scalear.tensor_files import write_tensors

CLASSIFIER_NAME = "classifier.safetensors"
"""Of the classifier that measures images of a dataset, in the dataset's folder."""
WIDTHS = (32, 48, 96, 192)
"""Of the classifiers that measure here."""


class ImageClassifier(nn.Module):
    """Residual convolutions at falling resolution, then a global average and one linear layer.

    About 25 million multiplications for an image of 32 px or more with the default widths.

    Args:
        image_channels: 1 (grey) or 3 (RGB).
        num_classes: Number of logits; 0 for features alone.
        image_size: Side of the images in pixels. The first convolution makes about 32 of more than 32.
        widths: Channels of each stage; every stage after the first halves the resolution. The last is the number
            of features.
    """

    def __init__(
        self, image_channels: int, num_classes: int, image_size: int, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        self.image_channels, self.num_classes, self.image_size = image_channels, num_classes, image_size
        self.widths = tuple(widths)
        self.num_features = self.widths[-1]
        stride = max(1, image_size // 32)
        stages: list[nn.Module] = [_convolution(image_channels, self.widths[0], stride, reach=stride)]
        for before, after in zip(self.widths, self.widths[1:], strict=False):
            stages += [_convolution(before, after, stride=2), _Residual(after)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else None
        self.to(memory_format=torch.channels_last)  # the layout that CPUs and tensor cores convolve fastest

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Image in [-1, 1] -> penultimate features_BF, none negative."""
        return self.stages(image_BCHW).mean(dim=(2, 3))

    def features_and_texture(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Image in [-1, 1] -> `features`, and means over the image of what the two finest resolutions see.

        The second is as wide as the first two widths together.
        """
        first, down, residual, *coarser = self.stages
        fine_BCHW = first(image_BCHW)
        coarse_BCHW = residual(down(fine_BCHW))
        x_BCHW = nn.Sequential(*coarser)(coarse_BCHW)
        texture_BF = torch.cat([fine_BCHW.mean(dim=(2, 3)), coarse_BCHW.mean(dim=(2, 3))], dim=1)
        return x_BCHW.mean(dim=(2, 3)), texture_BF

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Image in [-1, 1] -> logits_BK. There must be classes."""
        return self.head(self.features(image_BCHW))


def save_classifier(path: str | Path, classifier: ImageClassifier, record: dict[str, object]) -> None:
    """Write weights, architecture and `record` (how it was trained, what it reached) as one safetensors file."""
    architecture = {
        "image_channels": classifier.image_channels,
        "num_classes": classifier.num_classes,
        "image_size": classifier.image_size,
        "widths": classifier.widths,
    }
    metadata = {"architecture": json.dumps(architecture), "record": json.dumps(record)}
    write_tensors(path, classifier.state_dict(), metadata)


def no_classifier(path: str | Path) -> str:
    """That there is no classifier at a path, and the command that makes one."""
    return f"no classifier at {path}; train one with `{_command(path)}`"


def load_classifier(path: str | Path) -> ImageClassifier:
    """The classifier that `save_classifier` wrote, in eval mode.

    Raises:
        ValueError: The file is missing, damaged, or not a classifier's.
    """
    if not Path(path).is_file():
        raise ValueError(no_classifier(path))
    try:
        with safe_open(path, framework="pt") as file:
            architecture = json.loads((file.metadata() or {})["architecture"])
            classifier = ImageClassifier(**{"image_size": 32} | architecture)  # older files have no size
            classifier.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or holds no classifier of this package: {error}") from error
    return classifier.eval()


def classifier_record(path: str | Path) -> dict[str, Any]:
    """What a classifier's file says of its training; empty where there is no such file, or it says nothing."""
    return _said(path, "record")


def classifier_widths(path: str | Path) -> Sequence[int]:
    """Those that a classifier's file says; the default ones where there is no such file yet."""
    return _said(path, "architecture").get("widths", WIDTHS)


def check_beside(path: str | Path) -> None:
    """Refuse a classifier beside the dataset that it was trained on, if that has changed since.

    One of another dataset was put there on purpose: of images held out, for example.

    Args:
        path: Of its file.

    Raises:
        ValueError: The dataset has other training images or classes now.
    """
    record, folder = classifier_record(path), Path(path).parent
    if record.get("checksum") is None or not (folder / INDEX_NAME).is_file():
        return
    index, split = DatasetIndex.load(folder), record["train_split"]
    if index.name != record["dataset"]:
        return
    checksum = index.checksum(split) if split in index.splits else None
    if checksum != record["checksum"] or index.class_names != record["class_names"]:
        raise ValueError(
            f"{path} was trained on other images than lie beside it, for {index.name} has changed since: remove it, "
            f"and train one with `{_command(path)}`"
        )


class _Residual(nn.Module):
    """One convolution added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.convolution(x)))


def _convolution(before: int, after: int, stride: int = 1, reach: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 2 * reach + 1, stride, padding=reach, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _said(path: str | Path, name: str) -> dict[str, Any]:
    """What a classifier's file says beside its weights; empty where there is no such file, or it says nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})[name])
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}


def _command(path: str | Path) -> str:
    """What trains a classifier; where it is to lie beside a dataset, on that and in a folder of its own."""
    command, dataset = "scalear fit -c configs/fashion/classifier.yaml", Path(path).parent
    if not (dataset / INDEX_NAME).is_file():
        return command
    run = Path("runs", dataset.absolute().name, "classifier")
    return f"{command} --data.data_dir {dataset} --trainer.default_root_dir {run}"
