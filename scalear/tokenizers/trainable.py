"""What a tokenizer adds to the contract of `scalear.tokenizers.base` when it can be trained here."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from scalear.tokenizers.base import Tokenizer
from scalear.tokenizers.bottleneck import Passage, Posterior, Quantized, TrainingRequest


@dataclass
class Reconstruction:
    """One training pass of a tokenizer at one size.

    Attributes:
        image_BCHW: The decoder's output.
        target_BCHW: The image that it is held to.
        penalties: What the bottleneck costs, by name; each (B,) or a mean over the batch.
        quantized: What went through the codebook, if there is one.
        scale: Name of the latent's size, such as "4"; empty for the full size.
    """

    image_BCHW: Tensor
    target_BCHW: Tensor
    penalties: dict[str, Tensor]
    quantized: Quantized | None = None
    scale: str = ""


class TrainableTokenizer(Tokenizer):
    """A tokenizer whose encoder and decoder are learned by `scalear.training.tokenizer.module`."""

    @property
    @abstractmethod
    def penalties(self) -> frozenset[str]:
        """Names of all that its bottleneck may cost; see `Reconstruction`."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where reconstruction and adversarial gradients are balanced."""

    @abstractmethod
    def passages(self, image: Tensor, request: TrainingRequest) -> list[Passage]:
        """image_BCHW through encoder and bottleneck, differentiable: at full size, then at each of the request's."""

    @abstractmethod
    def reconstruct(self, image: Tensor, request: TrainingRequest) -> list[Reconstruction]:
        """image_BCHW there and back, differentiable: at full size, then at each of the request's sizes."""

    @abstractmethod
    def posterior(self, image: Tensor) -> Posterior | None:
        """image_BCHW -> Gaussian over raw latents; None for codes, whose statistics stay the identity."""

    @abstractmethod
    def check_gradients(self) -> None:
        """Refuse arguments by which some weights get no gradient, for which training on several ranks would wait.

        Raises:
            ValueError: Names the arguments and the remedy.
        """
