from pathlib import Path

import pytest
from data_fixtures import write_images, write_latents

from scalear.data.index import DatasetIndex


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    write_images(directory)
    return directory


@pytest.fixture(scope="session")
def latents(tmp_path_factory, images: Path) -> Path:
    directory = tmp_path_factory.mktemp("latents")
    write_latents(directory, DatasetIndex.load(images))
    return directory
