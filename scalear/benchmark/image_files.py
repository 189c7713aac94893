"""The loader that one would write without shards: image files, a transform for each, PyTorch's own batches."""

import itertools
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)

from scalear.data.datamodule import ShardDataModule
from scalear.data.reader import open_shard

_MAX_FILES = 10_000


class ImageFiles:
    """The training images of a datamodule as files, the very bytes that lie in its shards.

    They lie in a temporary folder, which goes with this object.

    Args:
        data: Of images. No more than its first 10,000 are written.

    Raises:
        ValueError: It holds latents, or a sample without an image.
    """

    def __init__(self, data: ShardDataModule) -> None:
        if data.index.kind != "images":
            raise ValueError(f"the plain loader reads image files, but {data.folder} holds {data.index.kind}")
        self._data = data
        self._folder = tempfile.TemporaryDirectory()
        index = data.index
        shards = (open_shard(data.folder, index, shard) for shard in index.shards(data.train_split))
        samples = ((shard, number) for shard in shards for number in range(len(shard)))
        for count, (shard, number) in enumerate(itertools.islice(samples, _MAX_FILES)):
            _, extension, content = shard.encoded(number)
            path = Path(self._folder.name, str(shard.label(number)), f"{count}.{extension}")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    def loader(self) -> DataLoader:
        """Shuffled batches of (image_BCHW in [-1, 1], folder_B), augmented and read by as many workers as `data` has.

        Raises:
            ValueError: There are too few images for a batch.
        """
        data, channels, augmentation = self._data, self._data.index.image_channels, self._data.augmentation
        steps = [ToTensor(), Normalize([0.5] * channels, [0.5] * channels)]
        if augmentation.flip:
            steps.insert(0, RandomHorizontalFlip())
        if augmentation.min_crop_fraction is not None:
            area, square = (augmentation.min_crop_fraction**2, 1.0), (1.0, 1.0)
            steps.insert(0, RandomResizedCrop(data.image_size, area, square, InterpolationMode.BICUBIC))
        elif augmentation.crop is not None:
            steps.insert(0, RandomCrop(data.image_size))
        if data.index.raw is not None:
            size = data.index.image_size
            steps[:0] = [Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)]
        open_image = partial(_open, mode={1: "L", 3: "RGB"}[channels])
        files = ImageFolder(self._folder.name, Compose(steps), loader=open_image)
        if len(files) < data.batch_size:
            raise ValueError(f"a batch of {data.batch_size} is larger than the {len(files)} image files: lower --batch")
        return DataLoader(
            files,
            data.batch_size,
            shuffle=True,
            num_workers=data.num_workers,
            drop_last=True,
            persistent_workers=data.num_workers > 0,
        )


def _open(path: str, mode: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert(mode)
