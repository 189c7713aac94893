"""What fewer evaluations of a trained flow head cost: solvers and time grids, compared.

Every solver makes the same images from the same noise. Legend: B batch, N images, K scales, F features.
"""

import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args, get_type_hints

import torch
from torch import Tensor

from scalear.benchmark.record import Record
from scalear.benchmark.subject import Subject
from scalear.benchmark.timing import yardstick
from scalear.draws import SeededDraws
from scalear.evaluation.compared import markdown, on_front
from scalear.evaluation.evaluate import needs_of, score
from scalear.evaluation.feature_set import FeatureSet
from scalear.evaluation.fid import FrechetDistance
from scalear.evaluation.images import to_uint8
from scalear.evaluation.manifold import ManifoldMetrics
from scalear.evaluation.statistics import FeatureStatistics
from scalear.files import check_new_file
from scalear.flow import FlowSolver
from scalear.hardware.machine import stopwatch
from scalear.training.generator.samples import SampleRequest

OFFICIAL = FlowSolver("euler", 25, "flowar")
FAST8 = FlowSolver("ab3", 8, "late")  # configs/fast8.yaml
CANDIDATES = [
    OFFICIAL,
    *(FlowSolver("euler", steps) for steps in (4, 8, 16)),
    FlowSolver("midpoint", 4),
    FlowSolver("heun", 4),
    FlowSolver("ab2", 8),
    FlowSolver("ab3", 8),
    FlowSolver("euler", 8, "late"),
    FlowSolver("midpoint", 4, "late"),
    *(FlowSolver("ab2", steps, "late") for steps in (4, 6, 8)),
    FlowSolver("ab3", 6, "late"),
    FAST8,
]
REFERENCE = FlowSolver("ab3", 200)
_NAMED = {"official": OFFICIAL, "fast8": FAST8}


@dataclass(kw_only=True)
class SolverOptions:
    """Sample with several flow solvers from the same noise, and compare evaluations, seconds, quality and distance.

    Raises:
        ValueError: A number is too small, a solver is none, or there is no place for the results.
    """

    images: int = 1000
    """Images that each solver makes."""
    batch: int = 250
    """Images at a time."""
    solvers: list[str] | None = None
    """Each as method:steps:grid, such as ab3:8:late or ab2:4/6/8:uniform."""
    threads: int | None = None
    """Of PyTorch; by default its own choice."""
    device: str = "cpu"
    """Such as cpu or cuda."""
    json: str | None = None
    """File for the results."""
    force: bool = False
    """Replace the file that is there."""

    def __post_init__(self) -> None:
        if self.images < 4 or self.batch < 1:  # recall looks for third neighbours
            raise ValueError(f"--images must be at least 4 and --batch 1, got {self.images} and {self.batch}")
        if self.json is not None:
            check_new_file(self.json, self.force)
        _ = self.candidates

    @property
    def candidates(self) -> list[FlowSolver]:
        """The solvers to compare."""
        return [parse_solver(text) for text in self.solvers] if self.solvers else CANDIDATES


@dataclass(kw_only=True)
class SolverResult(Record):
    """What was measured of one solver."""

    job: str = "solver"
    solver: str
    evaluations: list[int]
    """Of the network, for each scale."""
    evaluations_per_token: float
    """Their mean over all tokens, the axis of the Pareto fronts."""
    images: int
    fid: float | None
    recall: float | None
    distance: float
    """Of the first batch."""
    pareto: list[str] = field(default_factory=list, init=False)
    """Measures, of `fid` and `distance`, that nothing with as few evaluations is better in."""


def compare_solvers(
    options: SolverOptions, config: str, subject: Subject, load: Callable[[], None]
) -> tuple[list[SolverResult], str]:
    """Make images with each solver, and measure them.

    Args:
        options: What is compared, on how many images.
        config: Name of the config.
        subject: Its parts: a generator's.
        load: Gives the module its trained weights.

    Returns:
        The results in the order of the solvers, and with what the images were compared.

    Raises:
        ValueError: It is no flow head, a solver does not fit its scales, or files are missing.
    """
    if subject.model.generator.head.sampling_type is not FlowSolver:
        raise ValueError("`benchmark solver` compares flow solvers: take the config of a FlowAR generator")
    schedule = subject.model.schedule
    for solver in options.candidates:
        evaluations(solver, schedule.num_scales)  # refuses what does not fit the scales before the work begins
    load()

    judge = Judge(subject, options.batch)
    print(f"the reference, {name(REFERENCE)} ...", file=sys.stderr)
    exact_BChw, _ = sample(subject, REFERENCE, min(options.batch, options.images), options.batch)
    results = []
    for solver in options.candidates:
        print(f"{name(solver)} ...", file=sys.stderr)
        before = yardstick(subject.device, subject.product_dtype)
        latent_NChw, seconds = sample(subject, solver, options.images, options.batch)
        counts = evaluations(solver, schedule.num_scales)
        total = sum(count * length for count, length in zip(counts, schedule.lengths, strict=True))
        results.append(
            SolverResult(
                config=config,
                batch=options.batch,
                **subject.how(),
                seconds_per_image=seconds,
                yardstick_tflops=(before + yardstick(subject.device, subject.product_dtype)) / 2,
                solver=name(solver),
                evaluations=counts,
                evaluations_per_token=total / sum(schedule.lengths),
                images=options.images,
                **judge.scores(latent_NChw),
                distance=(latent_NChw[: options.batch] - exact_BChw).square().mean().sqrt().item(),
            )
        )
    mark_pareto(results)
    return results, judge.what


@torch.inference_mode()
def sample(subject: Subject, solver: FlowSolver, images: int, batch: int) -> tuple[Tensor, float]:
    """latent_NChw of images 0 to N - 1, whose classes take turns, and the median of the batches' seconds per image."""
    model, seconds, latents = subject.model, [], []
    label_N = SampleRequest(num_images=images).labels(model.num_classes)
    for first in range(0, images, batch):
        places = range(first, min(first + batch, images))
        label_B = label_N[places.start : places.stop].to(subject.device)
        draws = SeededDraws.of_images(subject.module.samples.seed, places, subject.device)

        def run(label_B: Tensor = label_B, draws: SeededDraws = draws) -> None:
            with subject.autocast():
                latents.append(model.sample_latent(label_B, draws, sampling=solver))

        seconds.append(stopwatch(run, subject.device) / len(places))
    return torch.cat(latents), statistics.median(seconds)


class Judge:
    """FID and recall of latents, as `scalear test` measures them.

    Args:
        subject: Its report names the extractor and the real images; without one there is no FID.
        batch: Images at a time.

    Attributes:
        what: What is compared with what.
    """

    def __init__(self, subject: Subject, batch: int) -> None:
        self._subject, self._batch, self._report = subject, batch, subject.module.report
        self.what = "no FID and recall, for the config has no model.report"
        if self._report is not None:
            real, extractor = self._report.reference, self._report.extractor
            self._metrics = [FrechetDistance(), ManifoldMetrics()]
            self._real = real.features(extractor, needs_of(self._metrics, "real"), batch, subject.device)
            self.what = f"FID and recall against {len(real.images):,} real ones ({real.name}); {extractor.name}"

    @torch.inference_mode()
    def scores(self, latent_NChw: Tensor) -> dict[str, float | None]:
        """`fid` and `recall`, None without a report."""
        if self._report is None:
            return {"fid": None, "recall": None}
        features = []
        for latent_BChw in latent_NChw.split(self._batch):
            with self._subject.autocast():
                image_BCHW = self._subject.tokenizer.decode(latent_BChw)
            features.append(self._report.extractor(to_uint8(image_BCHW))["pooled"].cpu())
        made = FeatureSet({"pooled": torch.cat(features)}, {"pooled": FeatureStatistics.of(features)})
        scores = score(self._metrics, self._real, made)
        return {name: scores[name] for name in ("fid", "recall")}


def evaluations(solver: FlowSolver, num_scales: int) -> list[int]:
    """How often a solver asks for the velocity, for each scale."""
    counts = []
    for k in range(num_scales):
        asked: list[float] = []
        solver.solve(lambda x, t, asked=asked: asked.append(t) or x, torch.zeros(1), solver.times(k, num_scales))
        counts.append(len(asked))
    return counts


def parse_solver(text: str) -> FlowSolver:
    """A solver from `method:steps:grid`; steps may be one number per scale, as in 4/6/8.

    Raises:
        ValueError: It is no such thing; says what may be written.
    """
    methods, grids = (get_args(get_type_hints(FlowSolver)[field]) for field in ("method", "grid"))
    method, steps, grid = [*text.split(":"), "", ""][:3]
    counts = [int(count) for count in steps.split("/") if count.isdecimal()]
    if method not in methods or grid not in grids or len(counts) != len(steps.split("/")) or text.count(":") != 2:
        raise ValueError(f"solver {text!r} is not METHOD:STEPS:GRID of {'|'.join(methods)} and {'|'.join(grids)}")
    return FlowSolver(method, counts[0] if len(counts) == 1 else counts, grid)


def name(solver: FlowSolver) -> str:
    """As `parse_solver` reads it, and the name of those that have one."""
    counts = [solver.num_steps] if isinstance(solver.num_steps, int) else solver.num_steps
    text = f"{solver.method}:{'/'.join(map(str, counts))}:{solver.grid}"
    known = [known for known, named in _NAMED.items() if named == solver]
    return f"{text} ({known[0]})" if known else text


def mark_pareto(results: list[SolverResult]) -> None:
    """Say of each in which measures none is better without more evaluations, nor as good with fewer."""
    for measure in ("fid", "distance"):
        measured = [result for result in results if getattr(result, measure) is not None]
        front = on_front([(result.evaluations_per_token, getattr(result, measure)) for result in measured])
        for result in itertools.compress(measured, front):
            result.pareto.append(measure)


def table(results: list[SolverResult]) -> str:
    """Markdown."""
    rows = [["solver", "evaluations per scale", "s/image", "FID", "recall", "distance", "Pareto front"]]
    for result in results:
        counts = result.evaluations if len(set(result.evaluations)) > 1 else result.evaluations[:1]
        scores = ["-" if score is None else f"{score:.3f}" for score in (result.fid, result.recall)]
        numbers = [f"{result.seconds_per_image:.4f}", *scores, f"{result.distance:.4f}"]
        rows.append([result.solver, "/".join(map(str, counts)), *numbers, ", ".join(result.pareto)])
    return markdown(rows)
