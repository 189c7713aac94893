"""`scalear stats`: what Frechet distances must know of real images, taken once and for all."""

import sys

import torch

from scalear.commands.typed.parser import function_parser
from scalear.evaluation.extractors import extractor_named
from scalear.evaluation.feature_set import extract
from scalear.evaluation.image_set import has_splits, image_set
from scalear.evaluation.statistics_file import statistics_needs, write_statistics
from scalear.files import check_new_file
from scalear.hardware.machine import best_device
from scalear.idle_settings import refuse_idle


def stats(
    dataset: str,
    output: str,
    split: str = "train",
    extractor: str = "inception",
    weights: str | None = None,
    force: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
) -> None:
    """Write mean and covariance of features of a dataset, where `scalear evaluate --reference` reads them.

    Args:
        dataset: Shards, a folder of images, or an .npz file of images.
        output: File to write, ending in .npz: `mu` and `sigma`, of spatial features `mu_s` and `sigma_s`, and of
            which images and by which network they are.
        split: Of shards.
        extractor: Network that looks at the images: inception, data (the one beside the dataset), fashion or
            timm:MODEL.
        weights: Its file. Default: as `scalear evaluate` takes it.
        force: Replace the file that is there.
        batch_size: Images at a time; changes memory and speed only. Default: the extractor's.
        device: Such as cpu or cuda. Default: an accelerator if there is one.

    Raises:
        ValueError: The images cannot be read, or `output` is no name for the file.
    """
    if not output.endswith(".npz"):
        raise ValueError(f"statistics are an .npz file: {output} must end so")
    check_new_file(output, force)
    if not has_splits(dataset):
        refuse_idle(stats, f"{dataset} is no folder of shards", split=split)
    images, network = image_set(dataset, split), extractor_named(extractor, weights, dataset)
    needs = statistics_needs(network)
    if len(images) < needs.count:
        raise ValueError(f"statistics need {needs.count} images or more, {dataset} has {len(images)}")
    print(f"{network.name} ...", file=sys.stderr)
    seen = extract(network, images, needs, batch_size, torch.device(device or best_device()))
    write_statistics(output, images, network, seen)
    features = ", ".join(f"{name} ({len(found.mean_F):,})" for name, found in seen.statistics.items())
    print(f"Wrote {output}: {features} of {len(images):,} images ({images.name}) by {network.name}")


def run(args: list[str]) -> None:
    """Carry out `scalear stats ...`.

    Args:
        args: The command line, from the command's name on.
    """
    stats(**function_parser(stats, "scalear stats", as_positional=True).parse_args(args[1:]))
