"""The protocol beside the numbers: what was measured, how, and what is to be known of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from scalear.class_paths import class_path
from scalear.evaluation.bootstrap import LEVEL
from scalear.evaluation.features import FeatureExtractor
from scalear.evaluation.labels import balance_cautions
from scalear.evaluation.metric import SampleMetric
from scalear.evaluation.side import Side
from scalear.hardware.machine import describe as describe_machine

_PACKAGES = ("scalear", "torch", "numpy", "pillow", "timm", "torch-fidelity")
# What stands beside a number, by the end of its name.
_BESIDE = {"_std": "spread", "_low": "from", "_high": "to", "_floor": "real images"}


@dataclass(frozen=True)
class Protocol:
    """All that somebody needs to get the same numbers of the same files.

    Attributes:
        samples: What was measured.
        reference: With what it was compared.
        extractor: By which network.
        metrics: Which numbers were taken.
        floor: Real images that were measured like the samples.
        resamples: Of the bootstrap.
        device: Where the network ran.
    """

    samples: Side
    reference: Side
    extractor: FeatureExtractor
    metrics: Sequence[SampleMetric]
    floor: Side | None = None
    resamples: int = 0
    device: torch.device | str = "cpu"

    def cautions(self) -> list[str]:
        """What is to be known of the numbers, one line each: counts too small, classes not alike, no floor."""
        found = [
            caution
            for metric in self.metrics
            for caution in metric.cautions(self.extractor, self.reference, self.samples)
        ]
        images = self.samples.images
        if images is not None and images.labelled and images.labels is not None:
            found += balance_cautions(images.labels)
        if self.extractor.caution is not None:
            found.append(self.extractor.caution)
        if self.floor is None:
            found.append("there is no floor: no other real images, as many as samples, were at hand")
        return found

    def result(self, scores: Mapping[str, float]) -> dict[str, Any]:
        """Numbers and protocol, for JSON."""
        return {**scores, "line": self.line(scores), "cautions": self.cautions(), "protocol": self.record()}

    def record(self) -> dict[str, Any]:
        """The protocol, for JSON."""
        return {
            "samples": _side(self.samples),
            "reference": _side(self.reference),
            "floor": None if self.floor is None else _side(self.floor),
            "extractor": self.extractor.name,
            "metrics": [_settings(metric) for metric in self.metrics],
            "intervals": {"resamples": self.resamples, "level": LEVEL} if self.resamples else None,
            "features": "float32, sums in float64",
            "machine": describe_machine(torch.device(self.device)),
            "versions": {name: version(name) for name in _PACKAGES},
        }

    def report(self, scores: Mapping[str, float]) -> str:
        """For the console: a table, what is to be known of it, and the line."""
        return "\n".join([self.table(scores), *self.cautions(), self.line(scores)])

    def table(self, scores: Mapping[str, float]) -> str:
        """A row for each number, and of what they are."""
        numbers = [name for name in scores if not name.endswith(tuple(_BESIDE))]
        beside = {end: what for end, what in _BESIDE.items() if any(f"{name}{end}" in scores for name in numbers)}
        rows = [["", "", *beside.values()]]
        for name in numbers:
            cells = [scores.get(f"{name}{end}") for end in ("", *beside)]
            rows.append([name, *("" if cell is None else f"{cell:.5g}" for cell in cells)])
        width = max(len(name) for name in numbers)
        lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows]
        lines.append(f"{_told(self.samples, 'samples')} against {_told(self.reference, 'real images')}")
        if self.floor is not None:
            lines.append(f"real images: {_told(self.floor, 'others')}, measured as the samples are")
        return "\n".join(line.rstrip() for line in lines)

    def line(self, scores: Mapping[str, float]) -> str:
        """The numbers of the field and their protocol on one line, to be pasted into a paper."""
        count = self.samples.count("pooled")
        names = {"fid": f"FID-{short_count(count)}" if count else "FID", "sfid": "sFID", "is": "IS", "kid": "KID"}
        parts = []
        for name, title in names.items():
            if name in scores:
                digits = 5 if name == "kid" else 2
                ends = [scores.get(f"{name}{end}") for end in ("_low", "_high")]
                interval = "" if None in ends else " [{:.{d}f}, {:.{d}f}]".format(*ends, d=digits)
                parts.append(f"{title} {scores[name]:.{digits}f}{interval}")
        for title, pair in {"P/R": ("precision", "recall"), "D/C": ("density", "coverage")}.items():
            if scores.keys() >= set(pair):
                parts.append(f"{title} {scores[pair[0]]:.2f}/{scores[pair[1]]:.2f}")
        how = [
            self.extractor.title,
            f"ref {self.reference.name}",
            *(sampling_words(self.samples.images.origin) if self.samples.images else ()),
            f"measured in float32 on {describe_machine(torch.device(self.device))}",
            f"scalear {version('scalear')}",
        ]
        return f"{', '.join(parts)} ({', '.join(how)})"


def short_count(count: int) -> str:
    """50,000 as 50k; other numbers that are no whole thousands as they are."""
    return f"{count // 1000}k" if count % 1000 == 0 and count else str(count)


def sampling_words(origin: Mapping[str, Any]) -> list[str]:
    """How samples were made, in the words of papers, as far as it is known.

    Args:
        origin: Settings by dotted names, as a sample set has them.
    """
    words = []
    if "model.guidance.weight" in origin:
        words.append(f"cfg {origin['model.guidance.weight']}")
    sampling = {name.removeprefix("model.sampling."): value for name, value in origin.items() if "sampling." in name}
    if "num_steps" in sampling:
        solver = sampling.get("method") or sampling.get("class_path", "").rpartition(".")[2]
        grid = sampling.get("grid", "uniform")
        words.append(f"{solver} {sampling['num_steps']}{'' if grid == 'uniform' else f' {grid}'}")
    for name, off in {"temperature": 1.0, "top_k": None, "top_p": 1.0}.items():
        if sampling.get(name, off) != off:
            words.append(f"{name.replace('_', '-')} {sampling[name]}")
    if "averaged" in origin.get("weights", ""):
        words.append("EMA")
    if "model.samples.seed" in origin:
        words.append(f"seed {origin['model.samples.seed']}")
    if "trainer.precision" in origin:
        words.append(f"sampled in {origin['trainer.precision']}")
    return words


def _side(side: Side) -> dict[str, Any]:
    images = side.images
    return {
        "name": side.name,
        "sha256": side.fingerprint(),
        "images": None if images is None else len(images),
        "image_shape": side.image_shape,
        "statistics": None if side.record is None else dataclasses.asdict(side.record),
        "statistics_of": {name: statistics.count for name, statistics in side.statistics.items()},
        "origin": None if images is None else dict(images.origin),
    }


def _settings(metric: SampleMetric) -> dict[str, Any]:
    """The class of a metric, and its settings: attributes that are plain values."""
    plain = {name: value for name, value in vars(metric).items() if isinstance(value, bool | int | float | str)}
    return {"class_path": class_path(type(metric)), "numbers": metric.numbers, **plain}


def _told(side: Side, what: str) -> str:
    count = side.count("pooled")
    return f"{count:,} {what} ({side.name})" if count else f"{what} of unknown count ({side.name})"
