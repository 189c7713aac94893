"""What a config leaves out because its dataset and its tokenizer know it: channels, classes, sizes, scales, places.

Only settings without a default can be left out, and only those of the table below are then found; what is written or
typed stays as it is, and is compared with the data before training.
"""

import inspect
import pydoc
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from scalear.data.index import INDEX_NAME, DatasetIndex
from scalear.evaluation.classifier import CLASSIFIER_NAME, ImageClassifier, no_classifier
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.hardware.precision import AUTO
from scalear.models.positions import GridPositions
from scalear.models.transformer import ScaleTransformer
from scalear.scales import ScaleSchedule
from scalear.schedules import PaperSchedules, doubling_schedule, with_scales_between
from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.conv import ConvShape
from scalear.tokenizers.residual import ResidualQuantizer
from scalear.training.classifier_module import ClassifierModule
from scalear.training.generator.report import SampleReport
from scalear.training.tokenizer.module import TokenizerModule


def fill_in(config: Namespace) -> None:
    """Give the model of a run what it leaves out.

    Args:
        config: With `model` and `data`; changed in place.

    Raises:
        ValueError: The dataset cannot be read, or does not say what is left out.
    """
    model, data = (config.get(f"{name}.init_args") for name in ("model", "data"))
    if model is None or data is None or data.get("data_dir") is None:
        return  # not the config of a run, or with somebody's own datamodule
    known = Known(model, data)
    _leave_rfid(model, known)
    for kind, arguments in _parts(config.model):
        for (base, name), find in KNOWN.items():
            if issubclass(kind, base) and _is_left_out(kind, name, arguments):
                try:
                    arguments[name] = find(known)
                except ValueError as error:
                    if Path(known.data_dir).exists():
                        raise
                    raise ValueError(
                        f"{name} of {kind.__name__} is left out of the config, and the dataset {known.data_dir}, which "
                        "knows it, is not here: name one by data.data_dir (scalear data pack makes it), or, if the run "
                        f"was made elsewhere, take fit.yaml of its folder as -c, or type {name}"
                    ) from error


class Known:
    """What is known of the images of a run.

    Args:
        model: Settings of the model.
        data: Settings of the datamodule.
    """

    def __init__(self, model: Namespace, data: Namespace) -> None:
        self._model, self._data = model, data
        self.data_dir: str = data.data_dir

    @cached_property
    def index(self) -> DatasetIndex:
        """Of the dataset."""
        return DatasetIndex.load(self.data_dir)

    @property
    def classifier(self) -> str:
        """Where the network lies that measures images of this dataset, or is to lie."""
        return str(Path(self.data_dir, CLASSIFIER_NAME))

    @property
    def num_classes_to_learn(self) -> int:
        """Classes that a classifier can learn to tell apart: none where there is but one."""
        return self.index.num_classes if self.index.num_classes > 1 else 0

    @cached_property
    def image_size(self) -> int:
        """Side of the images that the model sees."""
        if crop := self._data.get("random_crop"):
            return crop
        latents = self._data.get("latents_dir")  # of crops, perhaps
        cached = latents is not None and Path(latents, INDEX_NAME).is_file()
        return (DatasetIndex.load(latents) if cached else self.index).image_size

    @property
    def latent_side(self) -> int:
        """Cells per side of the latent of an image."""
        shape = self._model.tokenizer.init_args.get("shape")
        if shape is None:
            kind = self._model.tokenizer.class_path.rpartition(".")[2]
            raise ValueError(f"the scales of a {kind} cannot be left out, for its stride is not in the config")
        return max(1, self.image_size // ConvShape(**shape).stride)

    @property
    def schedule(self) -> ScaleSchedule:
        """Scales of generators and of residual codes: those that are written for one of them, or else doubling ones."""
        for name in ("transformer.init_args.scales", "tokenizer.init_args.bottleneck.init_args.scales"):
            if (scales := self._model.get(name)) is not None:
                return ScaleSchedule.parse(scales)
        pyramid = self._model.get("pyramid", Namespace()).get("init_args", Namespace())
        return doubling_schedule(self.latent_side // pyramid.get("patch_size", 1))

    @property
    def side(self) -> int:
        """Of the finest scale."""
        return max(self.schedule.sizes[-1])


KNOWN: dict[tuple[type, str], Callable[[Known], Any]] = {
    (Tokenizer, "image_channels"): lambda known: known.index.image_channels,
    (ResidualQuantizer, "scales"): lambda known: _as_written(known.schedule),
    (TokenizerModule, "scales"): lambda known: _as_written(with_scales_between(known.schedule)),
    (ScaleTransformer, "num_classes"): lambda known: known.index.num_classes,
    (ScaleTransformer, "scales"): lambda known: _as_written(known.schedule),
    (GridPositions, "side"): lambda known: known.side,
    (PaperSchedules, "side"): lambda known: known.side,
    (PaperSchedules, "max_between"): lambda known: max(0, known.schedule.num_scales - 2),
    (SampleReport, "data_dir"): lambda known: known.data_dir,
    (ClassifierFeatures, "weights"): lambda known: known.classifier,
    (ImageClassifier, "image_channels"): lambda known: known.index.image_channels,
    (ImageClassifier, "num_classes"): lambda known: known.num_classes_to_learn,
    (ImageClassifier, "image_size"): lambda known: known.image_size,
    (ClassifierModule, "export_path"): lambda known: known.classifier,
}
"""Settings that may be left out, by the class that takes them, and what they are then."""


def _parts(value: Any) -> Iterator[tuple[type, Namespace]]:
    """Every part inside: its class and its settings."""
    if isinstance(value, list):
        for entry in value:
            yield from _parts(entry)
    if not isinstance(value, Namespace):
        return
    if isinstance(path := value.get("class_path"), str) and isinstance(kind := pydoc.locate(path), type):
        yield kind, value.get("init_args") or Namespace()
    for entry in list(vars(value).values()):
        yield from _parts(entry)


def _is_left_out(kind: type, name: str, arguments: Namespace) -> bool:
    parameter, value = _parameter(kind, name), arguments.get(name)
    if parameter is None:
        return False
    return value == AUTO or (value is None and parameter.default is inspect.Parameter.empty)


def _parameter(kind: type, name: str) -> inspect.Parameter | None:
    """The one of the constructor, or of that of a class above to which it hands on all that it does not know."""
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            if name in parameters:
                return parameters[name]
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                return None
    return None


def _leave_rfid(model: Namespace, known: Known) -> None:
    """Train without rFID, and say so, where the network beside the dataset would measure it and is not there."""
    for kind, arguments in _parts(model.get("rfid")):
        if issubclass(kind, ClassifierFeatures) and _is_left_out(kind, "weights", arguments):
            if not Path(known.classifier).is_file():
                rank_zero_info(f"rFID is not measured: {no_classifier(known.classifier)}")
                model.rfid = None


def _as_written(schedule: ScaleSchedule) -> list[int | list[int]]:
    return [height if height == width else [height, width] for height, width in schedule.sizes]
