"""The loader that one would write without shards: image files, a transform for each, PyTorch's own batches."""

import itertools
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor
from webdataset import gopen

from scalear.data.datamodule import ShardDataModule
from scalear.data.imaging import IMAGE_EXTENSIONS
from scalear.data.index import shard_url
from scalear.data.shards import read_samples

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
            raise ValueError(f"the plain loader reads image files, but {data.data_dir} holds {data.index.kind}")
        self._data = data
        self._folder = tempfile.TemporaryDirectory()
        samples = itertools.chain.from_iterable(
            read_samples(gopen(shard_url(data.data_dir, shard))) for shard in data.index.shards(data.train_split)
        )
        for number, (_, members) in enumerate(itertools.islice(samples, _MAX_FILES)):
            extension = next((extension for extension in members if extension in IMAGE_EXTENSIONS), None)
            if extension is None:
                raise ValueError(f"sample {number} of {data.data_dir} has no image: check it with scalear data verify")
            path = Path(self._folder.name, members.get("cls", b"0").decode(), f"{number}.{extension}")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(members[extension])

    def loader(self) -> DataLoader:
        """Shuffled batches of (image_BCHW in [-1, 1], folder_B), augmented and read by as many workers as `data` has.

        Raises:
            ValueError: There are too few images for a batch.
        """
        data, channels = self._data, self._data.index.image_channels
        steps = [ToTensor(), Normalize([0.5] * channels, [0.5] * channels)]
        if data.flip:
            steps.insert(0, RandomHorizontalFlip())
        if data.random_crop is not None:
            steps.insert(0, RandomCrop(data.random_crop))
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
