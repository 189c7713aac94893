"""`scalear evaluate`: numbers of any samples against any real images, without a model."""

import sys

import torch

from scalear.commands.typed.parser import CommandParser, add_arguments_file, summary
from scalear.evaluation.evaluate import choose_metrics, default_metrics, evaluate_samples
from scalear.evaluation.extractors import extractor_named
from scalear.evaluation.image_set import has_splits
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.protocol import Protocol
from scalear.evaluation.side import Side, floor_of
from scalear.files import check_new_file, write_json
from scalear.hardware.machine import best_device
from scalear.idle_settings import refuse_idle


def evaluate(
    samples: str,
    reference: str,
    extractor: str = "inception",
    weights: str | None = None,
    metrics: list[str] | None = None,
    more_metrics: list[SampleMetric] | None = None,
    reference_split: str = "val",
    samples_split: str = "val",
    bootstrap: int = 0,
    json: str | None = None,
    force: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
) -> None:
    """Measure samples against real images: FID, sFID, IS, KID, precision, recall, density, coverage and more.

    Either side is an .npz file of images as ADM lays them out, a folder of images, a folder of shards, or an .npz file
    of statistics, for what needs no more. Prints a table, what is to be known of the numbers, and a line for a paper.

    Args:
        samples: What is measured.
        reference: Real images, or their statistics (`scalear stats`).
        extractor: Network that looks at the images: inception, data (the network beside the reference, which
            configs/fashion/classifier.yaml trains), fashion (the one beside data/fashion-mnist) or timm:MODEL.
        weights: Its file. Default: weights/pt_inception-2015-12-05-6726825d.pth, classifier.safetensors beside the
            dataset, or weights/MODEL.safetensors. `random:SEED` takes random weights, to test the machinery.
        metrics: Some numbers only, such as `fid kid`. Default: all that these images can have.
        more_metrics: Metrics of your own, by class_path.
        reference_split: Of shards. Where another split has as many images as there are samples, these are measured
            too: the floor, which real images reach.
        samples_split: Of shards.
        bootstrap: How often samples are drawn anew, with replacement, for 95 % intervals of Frechet distances, IS,
            accuracy and variety; such as 200. Each takes as long as the numbers themselves do once features are there.
        json: File for the numbers and the protocol.
        force: Replace the file that is there.
        batch_size: Images at a time; changes memory and speed only. Default: the extractor's.
        device: Such as cpu or cuda. Default: an accelerator if there is one.

    Raises:
        ValueError: A side cannot be read, the two do not compare, or a number that was asked for cannot be had.
    """
    if json is not None:
        check_new_file(json, force)
    if bootstrap < 0 or (batch_size or 1) < 1:
        raise ValueError(f"need --bootstrap >= 0 and --batch_size >= 1, got {bootstrap} and {batch_size}")
    if not has_splits(samples):
        refuse_idle(evaluate, f"{samples} is no folder of shards", samples_split=samples_split)
    if not has_splits(reference):
        refuse_idle(evaluate, f"{reference} is no folder of shards", reference_split=reference_split)
    fake, real = Side.open(samples, samples_split), Side.open(reference, reference_split)
    network = extractor_named(extractor, weights, reference)
    _ = network.network  # whose file may be missing
    asked = [name for part in metrics for name in part.split(",")] if metrics else None
    chosen = choose_metrics([*default_metrics(), *(more_metrics or [])], network, real, fake, asked)
    if not any(metric.drawn_again for metric in chosen):
        refuse_idle(evaluate, "none of these numbers has an interval", bootstrap=bootstrap)
    floor = floor_of(real, fake.count("pooled"))
    place = torch.device(device or best_device())
    protocol = Protocol(fake, real, network, chosen, floor, bootstrap, place)
    print("\n".join([f"{network.name} ...", *protocol.cautions()]), file=sys.stderr)
    scores = evaluate_samples(fake, real, network, chosen, floor, bootstrap, batch_size, place)
    print(f"{protocol.table(scores)}\n{protocol.line(scores)}")
    if json is not None:
        write_json(json, protocol.result(scores))


def evaluate_parser() -> CommandParser:
    """Of `scalear evaluate SAMPLES --reference REFERENCE ...`."""
    parser = CommandParser(prog="scalear evaluate", description=summary(evaluate))
    parser.add_argument("samples", type=str, help="What is measured.")
    add_arguments_file(parser)
    parser.add_function_arguments(evaluate, skip={"samples"})
    return parser


def run(args: list[str]) -> None:
    """Carry out `scalear evaluate ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = evaluate_parser()
    options = parser.instantiate_classes(parser.parse_args(args[1:]))
    options.pop("config", None)
    evaluate(**options)
