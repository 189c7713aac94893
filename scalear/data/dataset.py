"""Batches of a split: which rows to read comes from the plan, what they hold from the reader."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from scalear.data.batch import Batch
from scalear.data.imaging import center_crop
from scalear.data.plan import EvalBatches, TrainBatches, TrainPlan, augmentation_uniforms
from scalear.data.reader import BrokenSampleError, ImageSample, LatentSample, ShardReader

_log = logging.getLogger(__name__)
# In place of a sample's uniform numbers: not mirrored, and the centre of the smallest resized image.
_EVALUATION = (0.5, 0.5, 0.5, 0.0)


@dataclass(frozen=True)
class Augmentation:
    """What training does to a sample; its choices depend on (seed, stream position) only.

    Attributes:
        flip: Mirror with probability 1/2. For latents the stored latent of the mirror image is taken.
        crop: Side of a random crop of images; None keeps them whole.
        min_crop_fraction: Resize images first, to a side from `crop` to `crop / min_crop_fraction`, rounded up: ADM's
            `random_crop_arr`. None crops them at the size that they have.
    """

    flip: bool
    crop: int | None
    min_crop_fraction: float | None = None

    @property
    def largest_side(self) -> int:
        """That images are resized to."""
        return self.crop if self.min_crop_fraction is None else math.ceil(self.crop / self.min_crop_fraction)

    def cropped(self, image: NDArray[np.uint8], vertical: float, horizontal: float, size: float) -> NDArray[np.uint8]:
        """A square of a square image; place and size are numbers in [0, 1), parts of what is possible."""
        if self.crop is None:
            return image
        if self.min_crop_fraction is not None:
            image = _resized(image, self.crop + int(size * (self.largest_side - self.crop + 1)))
        free = len(image) - self.crop + 1
        top, left = int(vertical * free), int(horizontal * free)
        return image[top : top + self.crop, left : left + self.crop]


class ShardDataset(Dataset):
    """A split of a dataset, read a batch at a time.

    Args:
        reader: Of the split.
        batches: The batches that will be asked for.
        augmentation: Evaluation takes the central crop, as much of an image as it can be, and never flips.
        plan: Order of training; None reads in the order of the shards, for evaluation.
        max_bad: Broken samples to leave out of a pass before it is refused.
    """

    def __init__(
        self,
        reader: ShardReader,
        batches: TrainBatches | EvalBatches,
        augmentation: Augmentation,
        plan: TrainPlan | None = None,
        max_bad: int = 0,
    ) -> None:
        self.max_bad = max_bad
        self.batches = batches
        self._reader = reader
        self._augmentation = augmentation
        self._plan = plan

    def __len__(self) -> int:
        return len(self._reader)

    def __getitems__(self, positions: range) -> Batch:
        """The batch at consecutive positions of the training stream, or of the split.

        Raises:
            ValueError: A shard is broken, or a sample is and none may be.
        """
        indices = positions if self._plan is None else self._plan.samples(positions).tolist()
        samples, rows = [], []
        for row, index in enumerate(indices):
            try:
                samples.append(self._reader[index])
            except BrokenSampleError as error:
                if self.max_bad == 0:
                    raise ValueError(f"{error}; set max_bad_fraction above 0 to leave such samples out") from error
                _log.warning("left out: %s", error)
                continue
            rows.append(row)
        if not samples:
            raise ValueError(f"all {len(positions)} samples of a batch are broken, see the log")
        if self._plan is None:
            uniforms = np.tile(_EVALUATION, (len(rows), 1))
        else:
            uniforms = augmentation_uniforms(self._plan.seed, positions)[rows]
        is_latent = isinstance(samples[0], LatentSample)
        return Batch(
            inputs=self._moments(samples, uniforms) if is_latent else self._images(samples, uniforms),
            label=torch.tensor([sample.label for sample in samples]),
            keys=[sample.key for sample in samples],
            position=positions.start + torch.tensor(rows),
            stream_end=self.batches.stream_end(positions) if self._plan is not None else 0,
            kind="latents" if is_latent else "images",
        )

    def _moments(self, samples: list[LatentSample], uniforms: NDArray) -> Tensor:
        flipped = self._flipped(uniforms)
        moments = [s.flipped if mirror else s.moments for s, mirror in zip(samples, flipped, strict=True)]
        out = _empty_batch((len(moments), *moments[0].shape), getattr(torch, str(moments[0].dtype)))
        np.stack(moments, out=out.numpy())
        return out

    def _images(self, samples: list[ImageSample], uniforms: NDArray) -> Tensor:
        crops = [self._augmentation.cropped(s.image, *row[1:]) for s, row in zip(samples, uniforms, strict=True)]
        flipped = self._flipped(uniforms)
        image_BHWC = np.stack([crop[:, ::-1] if mirror else crop for crop, mirror in zip(crops, flipped, strict=True)])
        image_BCHW = torch.from_numpy(image_BHWC).permute(0, 3, 1, 2)
        out = _empty_batch(image_BCHW.shape, torch.float32)
        return out.copy_(image_BCHW).div_(127.5).sub_(1)

    def _flipped(self, uniforms: NDArray) -> NDArray[np.bool_]:
        return (uniforms[:, 0] < 0.5) & self._augmentation.flip


class ShardLoader(DataLoader):
    """A DataLoader over a ShardDataset that refuses a pass once too many samples were left out.

    Batches come in the order of the plan for any number of workers. No constructor of its own: Lightning makes a copy
    for prediction from the arguments of `DataLoader`.
    """

    @classmethod
    def build(cls, dataset: ShardDataset, num_workers: int) -> "ShardLoader":
        """A loader of the batches of `dataset`. In training the workers live on, and keep their shards open."""
        return cls(
            dataset,
            batch_sampler=dataset.batches,
            collate_fn=_as_is,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0 and isinstance(dataset.batches, TrainBatches),
            generator=torch.Generator(),  # else each pass would draw from the global one
        )

    def __iter__(self) -> Iterator[Batch]:
        num_bad = 0
        for positions, batch in zip(self.dataset.batches, super().__iter__(), strict=True):
            num_bad += len(positions) - len(batch)
            if num_bad > self.dataset.max_bad:
                raise ValueError(
                    f"{num_bad} broken samples in one pass, more than max_bad_fraction allows "
                    f"({self.dataset.max_bad} for this rank); the log names them"
                )
            yield batch


def _as_is(batch: Batch) -> Batch:
    return batch


def _empty_batch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a batch; that of a worker is shared memory already, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)


def _resized(image_HWC: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A square image of another size. Of a square, ADM's centre crop is all."""
    image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)
    return np.asarray(center_crop(image, side)).reshape(side, side, -1)
