"""diffusers' autoencoders as tokenizers: `AutoencoderKL` (SD-VAE) and `AutoencoderDC` (DC-AE).

The architecture is an argument, so that a config instantiates offline and on the meta device; weights are read by
`load_weights`. diffusers' `encode` and `decode` apply no statistics: here they become the tokenizer's.

    latent = (raw - mean) / std, with mean = latents_mean or shift_factor, std = (latents_std or 1) / scaling_factor
"""

import inspect
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.bottleneck import Posterior

if TYPE_CHECKING:
    from diffusers import ModelMixin

# Entries of diffusers' config.json that change no tensor and no output.
IRRELEVANT = ("sample_size", "force_upcast")


class DiffusersTokenizer(Tokenizer):
    """What the adapters share: building, statistics, loading.

    Args:
        architecture: Arguments of the diffusers class, as in the model's `config.json`; those left out have the
            class's defaults. They include the statistics.
        stride: Pixels per latent cell and side.
        source: Local folder or Hub id of the weights; None for random weights.
        subfolder: Folder inside `source` that holds the autoencoder, `vae` in whole pipelines.
    """

    weight_arguments = frozenset({"source", "subfolder"})
    class_name: str

    def __init__(
        self, architecture: dict[str, Any], stride: int, source: str | None = None, subfolder: str | None = None
    ) -> None:
        known = set(inspect.signature(self.model_class).parameters)
        if unknown := sorted(set(architecture) - known):
            raise ValueError(f"{self.class_name} has no arguments {unknown}; it has {sorted(known)}")
        model = self.model_class(**architecture)
        super().__init__(model.config.in_channels, model.config.latent_channels, stride)
        self.architecture = architecture
        self.source = source
        self.subfolder = subfolder
        self.model = model
        self._set_statistics()

    @property
    def model_class(self) -> "type[ModelMixin]":
        """The class of diffusers, which is imported here: that takes seconds, and few commands need it."""
        import diffusers

        return getattr(diffusers, self.class_name)

    def load_weights(self) -> None:
        if self.source is None:
            return
        try:
            config = self.model_class.load_config(self.source, subfolder=self.subfolder)
            self._check_architecture(config)
            loaded = self.model_class.from_pretrained(self.source, subfolder=self.subfolder, torch_dtype=torch.float32)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"cannot read {self.class_name} from {self.source!r} (subfolder {self.subfolder!r}), "
                "neither as a local folder nor from the Hub. Without a network, download it elsewhere "
                "(`hf download`) and set tokenizer.source to the folder"
            ) from error
        self.model.load_state_dict(loaded.state_dict())
        self._set_statistics()  # the buffers may have been lost on the meta device

    @property
    def has_weights(self) -> bool:
        return self.source is not None

    def decode(self, latent: Tensor) -> Tensor:
        return self.model.decode(self.denormalise(latent)).sample.float().clamp(-1.0, 1.0)

    def _set_statistics(self) -> None:
        config = self.model.config
        shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
        means = config.get("latents_mean") or [shift] * self.latent_channels
        deviations = config.get("latents_std") or [1.0] * self.latent_channels
        self.latent_mean.copy_(torch.tensor(means))
        self.latent_std.copy_(torch.tensor(deviations) / scale)

    def _check_architecture(self, config: dict[str, Any]) -> None:
        """Compare `config.json` beside the weights with what was built."""
        built, defaults = _plain(self.model.config), inspect.signature(self.model_class).parameters
        stored = {name: parameter.default for name, parameter in defaults.items()} | config
        differences = [
            f"{name} is {value!r} there and {built[name]!r} here"
            for name, value in sorted(_plain(stored).items())
            if name in defaults and name not in IRRELEVANT and built[name] != value
        ]
        if differences:
            raise ValueError(
                f"{self.source} holds another autoencoder than tokenizer.architecture says: {'; '.join(differences)}"
            )


class DiffusersKL(DiffusersTokenizer):
    """`AutoencoderKL`, such as SD-VAE (stabilityai/sd-vae-ft-ema: stride 8, 4 channels).

    Args:
        architecture: Arguments of `AutoencoderKL`, as in its `config.json`, statistics included.
        source: Local folder or Hub id of the weights; None for random weights.
        subfolder: Folder inside `source` that holds the autoencoder, `vae` in whole pipelines.
    """

    class_name = "AutoencoderKL"

    def __init__(self, architecture: dict[str, Any], source: str | None = None, subfolder: str | None = None) -> None:
        levels = len(architecture.get("block_out_channels", (64,)))
        super().__init__(architecture, 2 ** (levels - 1), source, subfolder)

    def moments(self, image: Tensor) -> Tensor:
        return self.model.encode(image).latent_dist.parameters.float()

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        posterior = Posterior.from_moments(moments)
        return self.normalise(posterior.mean_BChw if noise is None else posterior.sample(noise))


class DiffusersDC(DiffusersTokenizer):
    """`AutoencoderDC`, such as DC-AE (mit-han-lab/dc-ae-f32c32-in-1.0-diffusers: stride 32, 32 channels).

    It has no posterior: the moments are the latent, and noise is ignored.

    Args:
        architecture: Arguments of `AutoencoderDC`, as in its `config.json`, scaling factor included.
        source: Local folder or Hub id of the weights; None for random weights.
        subfolder: Folder inside `source` that holds the autoencoder, `vae` in whole pipelines.
    """

    class_name = "AutoencoderDC"

    def __init__(self, architecture: dict[str, Any], source: str | None = None, subfolder: str | None = None) -> None:
        levels = len(architecture.get("encoder_block_out_channels", (0,) * 6))
        super().__init__(architecture, 2 ** (levels - 1), source, subfolder)

    def moments(self, image: Tensor) -> Tensor:
        return self.model.encode(image).latent.float()

    @property
    def has_posterior(self) -> bool:
        return False

    def latent(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.normalise(moments)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Tuples become lists, as in JSON."""
    return json.loads(json.dumps(dict(config)))
