"""The networks that numbers are measured with, and how they are called by name.

Legend: B batch, C channels, H W pixels, F features.
"""

import io
import pickle
from pathlib import Path

import numpy as np
import timm
import torch
from einops import rearrange
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from scalear.data.index import INDEX_NAME
from scalear.evaluation.classifier import (
    CLASSIFIER_NAME,
    check_beside,
    classifier_record,
    classifier_widths,
    load_classifier,
)
from scalear.evaluation.features import FeatureExtractor

INCEPTION_WEIGHTS = "weights/pt_inception-2015-12-05-6726825d.pth"
FASHION_WEIGHTS = "data/fashion-mnist/classifier.safetensors"


class ClassifierFeatures(FeatureExtractor):
    """Features of this repository's `ImageClassifier`: `pooled`, `logits` if it has classes, and `texture`.

    `texture` are averages over the image of its first layers: edges and weave, which its last layer forgets.

    Args:
        weights: Path of the classifier's safetensors file.
        num_features: Last width of the classifier. Default: as its file says.
    """

    kind = "ImageClassifier"
    knows_labels = True

    def __init__(self, weights: str, num_features: int | None = None) -> None:
        super().__init__(weights, num_features or classifier_widths(weights)[-1])

    @property
    def widths(self) -> dict[str, int]:
        network = self.network
        logits = {"logits": network.num_classes} if network.num_classes else {}
        return {"pooled": self.num_features} | logits | {"texture": sum(network.widths[:2])}

    @property
    def title(self) -> str:
        record = classifier_record(self.weights)
        found = (("val_accuracy", "of labels right"), ("val_found_again", "of images found again, without labels"))
        told = [f"{record[name]:.1%} {what}" for name, what in found if record.get(name) is not None]
        return ", ".join([self.name, *told, *([f"trained on {record['dataset']}"] if "dataset" in record else [])])

    @property
    def caution(self) -> str:
        return f"numbers by {self.name} compare with each other only, not with those of another network"

    def check_channels(self, channels: int) -> None:
        if channels != self.network.image_channels:
            raise ValueError(
                f"{self.weights} was trained on images of {self.network.image_channels} channel(s), got {channels}: "
                "use the extractor of this dataset"
            )

    def _load(self) -> nn.Module:
        if self.seed is not None:
            raise ValueError(f"a classifier has the shape that its file says: {self.weights!r} is no file")
        classifier = load_classifier(self.weights)
        check_beside(self.weights)
        if classifier.num_features != self.num_features:
            raise ValueError(
                f"{self.weights} gives {classifier.num_features} features, not {self.num_features}: "
                "leave out num_features"
            )
        return classifier

    def _features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        pooled_BF, texture_BF = self.network.features_and_texture(image_BCHW.float() / 127.5 - 1)
        logits = {"logits": self.network.head(pooled_BF)} if self.network.num_classes else {}
        return {"pooled": pooled_BF} | logits | {"texture": texture_BF}


class InceptionFeatures(FeatureExtractor):
    """The Inception network of the FID papers (TensorFlow's of 2015, in torch-fidelity's port), as ADM reads it.

    `pooled` are its 2,048 averages; `spatial` the first 7 channels of `mixed_6/conv`, 17 x 17 x 7 numbers;
    `logits` of its 1,008 classes go without their bias. Images are resized to 299x299 with TensorFlow 1's bilinear
    rule, without antialiasing and without rounding, as the original does. Grey images are repeated to RGB.

    Args:
        weights: Path of `pt_inception-2015-12-05-6726825d.pth`, or `random:SEED`.
    """

    kind = "inception"
    published = {"6726825d": "TF-2015"}
    batch_size = 64

    def __init__(self, weights: str = INCEPTION_WEIGHTS) -> None:
        super().__init__(weights, num_features=2048)

    @property
    def widths(self) -> dict[str, int]:
        return {"pooled": 2048, "spatial": 17 * 17 * 7, "logits": 1008}

    def _load(self) -> nn.Module:
        if self.seed is not None:
            return _Inception().randomised(self.seed)
        if not Path(self.weights).is_file():
            raise ValueError(
                f"no Inception weights at {self.weights}; get pt_inception-2015-12-05-6726825d.pth from the releases "
                "of pytorch-fid (in those of torch-fidelity, the same file is called weights-inception-...) and put it "
                "there, or set the extractor's `weights` to its path; other extractors are data and timm:MODEL"
            )
        try:
            return _Inception().filled(torch.load(self.weights, map_location="cpu", weights_only=True))
        except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.weights} is damaged or not torch-fidelity's Inception: {error}") from error

    def _features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        seen = []
        # TensorFlow's mixed_6/conv is the first branch of what is the fourth block of this resolution here.
        layer = self.network.Mixed_6d.branch1x1
        with layer.register_forward_hook(lambda module, inputs, output: seen.append(output[:, :7])):
            pooled_BF, logits_BF = self.network(image_BCHW.expand(-1, 3, -1, -1))
        return {"pooled": pooled_BF, "spatial": rearrange(seen[0], "B C h w -> B (h w C)"), "logits": logits_BF}


class _Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's network; the constructor alone would read a file without restrictions, or download one."""

    def __init__(self) -> None:
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with torch.random.fork_rng(devices=[]):
            super().__init__("inception", ["2048", "logits_unbiased"], nothing)

    def load_state_dict(self, *args: object, **kwargs: object) -> None:
        """Nothing: the constructor calls it with nothing."""

    def filled(self, state: dict[str, Tensor]) -> "_Inception":
        """Itself with the weights of a file."""
        super().load_state_dict(state)
        return self

    def randomised(self, seed: int) -> "_Inception":
        """Itself with He's weights (2015), which keep activations alive through all layers, and without biases."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        nn.init.zeros_(self.fc.bias)
        return self


class TimmFeatures(FeatureExtractor):
    """A network of timm: `pooled`, what its head reads, and `logits` where it has a classifier.

    Images are resized, cropped and normalised by Pillow as the network's own configuration says. With
    `vit_large_patch14_dinov2.lvd142m` at 224 pixels, the Frechet distance is FD-DINOv2 (Stein et al. 2023).

    Args:
        model: Name that timm gives it.
        weights: Path of its weights, as timm publishes them; or `random:SEED`.
        image_size: Side of the images that it sees, in pixels. Default: that of its training.
    """

    batch_size = 32

    def __init__(self, model: str, weights: str, image_size: int | None = None) -> None:
        if not timm.is_model(model):
            raise ValueError(f"timm has no model {model!r}; `timm.list_models()` lists them")
        self.model = model
        self._config = {} if image_size is None else {"input_size": (3, image_size, image_size)}
        with torch.device("meta"):
            network = timm.create_model(model, pretrained_cfg_overlay=self._config)
        super().__init__(weights, network.head_hidden_size)
        seen = resolve_model_data_config(network)
        self.kind = f"timm:{model}, {seen['input_size'][-1]} px"
        self._transform = create_transform(**seen)

    @property
    def widths(self) -> dict[str, int]:
        classes = self.network.num_classes
        return {"pooled": self.num_features} | ({"logits": classes} if classes else {})

    def _load(self) -> nn.Module:
        if self.seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return timm.create_model(self.model, pretrained_cfg_overlay=self._config)
        if not Path(self.weights).is_file():
            source = timm.get_pretrained_cfg(self.model)
            where = f"https://huggingface.co/{source.hf_hub_id}" if source and source.hf_hub_id else "timm"
            raise ValueError(
                f"no weights of {self.model} at {self.weights}; get model.safetensors from {where} and put it there, "
                "or set the extractor's `weights` to its path"
            )
        try:
            file = {"file": self.weights}
            return timm.create_model(self.model, pretrained=True, pretrained_cfg_overlay=self._config | file)
        except Exception as error:  # timm's filters raise nearly anything on other networks' weights
            raise ValueError(f"{self.weights} is damaged or holds no {self.model}: {error}") from error

    def _features(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        images = image_BCHW.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        x_BCHW = torch.stack([self._transform(Image.fromarray(np.ascontiguousarray(image))) for image in images])
        network = self.network
        pooled_BF = network.forward_head(network.forward_features(x_BCHW.to(image_BCHW.device)), pre_logits=True)
        return {"pooled": pooled_BF} | ({"logits": network.get_classifier()(pooled_BF)} if network.num_classes else {})


def extractor_named(name: str, weights: str | None = None, dataset: str | None = None) -> FeatureExtractor:
    """The extractor that a command calls `inception`, `data`, `fashion`, `timm:MODEL` or `timm:MODEL@SIZE`.

    Args:
        name: Of the network.
        weights: Path of its file. Default: where docs/evaluation.md puts it.
        dataset: Folder of the real images, beside which the network `data` lies.

    Raises:
        ValueError: There is none of this name.
    """
    kind, _, model = name.partition(":")
    if kind == "timm" and model:
        model, _, size = model.partition("@")
        if size and not size.isdecimal():
            raise ValueError(f"{name!r} must end in @ and a number of pixels, as in timm:{model}@224")
        return TimmFeatures(model, weights or f"weights/{model}.safetensors", int(size) if size else None)
    if name == "inception":
        return InceptionFeatures(weights or INCEPTION_WEIGHTS)
    if name == "fashion" or (name == "data" and weights):
        return ClassifierFeatures(weights or FASHION_WEIGHTS)
    if name == "data":
        if not Path(dataset or "", INDEX_NAME).is_file():
            raise ValueError(
                f"the extractor data is the network beside a dataset, and {dataset} is none: name its file by --weights"
            )
        return ClassifierFeatures(str(Path(dataset, CLASSIFIER_NAME)))
    raise ValueError(f"there is no extractor {name!r}: take inception, data, fashion or timm:MODEL")
