"""What can be timed: a training step, sampling, encoding, loading. Each job is built once and run many times."""

import gc
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from scalear.benchmark.image_files import ImageFiles
from scalear.benchmark.subject import Subject, fill_zeros
from scalear.benchmark.time_shares import part
from scalear.draws import SeededDraws
from scalear.fast.allocator import return_memory
from scalear.image_model import ImageModel
from scalear.training.optim import RunLength

_LOADED_BATCHES = {"images": 64, "latents": 256}  # of a run; many, as a few are there before it begins


class Job(ABC):
    """Something to time.

    Attributes:
        subject: The parts that do it.
        images: Images that one run handles.
    """

    def __init__(self, subject: Subject, images: int) -> None:
        self.subject = subject
        self.images = images

    @abstractmethod
    def run(self) -> None:
        """Do it once."""


class TrainJob(Job):
    """A step of training on latents: pyramid, forward, backward, AdamW. No average, no clipping.

    Args:
        subject: A generator's.
        batch: Images of a step.
        loader: Take the batches from the config's data, and so measure the waiting, too.
        plain: Leave it to PyTorch how AdamW is carried out, which on CPUs takes parameters one by one.
    """

    def __init__(self, subject: Subject, batch: int, loader: bool, plain: bool) -> None:
        super().__init__(subject, batch)
        self._model = _image_model(subject, "train")
        generator = self._model.generator.train()
        fill_zeros(generator)
        self._optimizer = subject.module.optimizer.build(generator, RunLength(batch, 1.0, 1))["optimizer"]
        if plain:
            for group in self._optimizer.param_groups:
                group["fused"] = None
        self._shape = subject.latent_shape
        self._inputs = self._loaded() if loader else self._random()
        if not loader:
            _forget_tokenizer(self._model)
        self._step = 0

    def run(self) -> None:
        with part("data"):
            latent_BChw, label_B = next(self._inputs)
        draws = SeededDraws([(0, self._step, row) for row in range(len(label_B))], latent_BChw.device)
        self._step += 1
        with self.subject.autocast():
            total = self._model.loss(latent_BChw, label_B, draws).total
        total.backward()
        with part("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad()

    def _random(self) -> Iterator[tuple[Tensor, Tensor]]:
        draws = SeededDraws([(1, row) for row in range(self.images)], self.subject.device)
        latent_BChw = draws.normal("latent", *self._shape)
        label_B = torch.arange(self.images, device=self.subject.device) % max(1, self._model.num_classes)
        while True:
            yield latent_BChw, label_B

    def _loaded(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.subject.data.batch_size = self.images
        for batch in self.subject.batches():
            yield self.subject.latent(batch), batch.label.to(self.subject.device)


class SampleJob(Job):
    """Sampling with the config's own sampler and guidance.

    Args:
        subject: A generator's.
        batch: Images at a time.
        decoder: Go on to pixels.
    """

    def __init__(self, subject: Subject, batch: int, decoder: bool) -> None:
        super().__init__(subject, batch)
        self._model = _image_model(subject, "sample").eval()
        fill_zeros(self._model.generator)
        self._decoder = decoder
        if not decoder:
            _forget_tokenizer(self._model)

    @torch.inference_mode()
    def run(self) -> None:
        model, device = self._model, self.subject.device
        label_B = torch.arange(self.images, device=device) % max(1, model.num_classes)
        draws = SeededDraws.of_images(0, range(self.images), device)
        with self.subject.autocast():
            scales = list(model.sample_scales(label_B, draws))
            if self._decoder:
                with part("decoder"):
                    model.image(scales)


class EncodeJob(Job):
    """Images to what latent shards hold.

    Args:
        subject: Any with a tokenizer.
        batch: Images at a time.
        size: (H, W) of the images.
    """

    def __init__(self, subject: Subject, batch: int, size: tuple[int, int]) -> None:
        super().__init__(subject, batch)
        subject.module.eval()
        shape = (batch, subject.tokenizer.image_channels, *size)
        self._image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(subject.device)

    @torch.inference_mode()
    def run(self) -> None:
        with self.subject.autocast(), part("encoder"):
            self.subject.tokenizer.moments(self._image)


class LoadJob(Job):
    """The training loader on its own.

    Args:
        subject: Any; its data must be there.
        batch: Samples of a batch.
        plain: Take a plain loader over the same images as files.
    """

    def __init__(self, subject: Subject, batch: int, plain: bool) -> None:
        self._num_batches = _LOADED_BATCHES[subject.data.index.kind]
        super().__init__(subject, self._num_batches * batch)
        subject.data.batch_size = batch
        if plain:
            self._files = ImageFiles(subject.data)  # they last as long as this job
            loader = self._files.loader()
            self._batches = itertools.chain.from_iterable(itertools.repeat(loader))
        else:
            self._batches = iter(subject.batches())

    def run(self) -> None:
        with part("data"):
            for _ in range(self._num_batches):
                next(self._batches)


def _image_model(subject: Subject, job: str) -> ImageModel:
    if subject.model is None:
        raise ValueError(f"the config describes a tokenizer, `benchmark {job}` needs a generator: try `encode`")
    return subject.model


def _forget_tokenizer(model: ImageModel) -> None:
    # It has no part in the job, and would count as memory. Parsing left it in reference cycles.
    model.tokenizer = None
    gc.collect()
    return_memory()
