"""`scalear study --cost`: a training step and sampling of every row, timed once."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from scalear.benchmark.jobs import SampleJob, TrainJob
from scalear.benchmark.subject import Subject
from scalear.commands.benchmark import build_subject
from scalear.commands.studying.rows import StudyRuns, alone_in
from scalear.hardware.machine import best_device, describe, stopwatch
from scalear.study.cost import Cost, hours, read_costs, write_costs
from scalear.study.plan import GeneratorRow, SamplingRow, StudyRow, TokenizerRow, TrainedRow
from scalear.training.optim import RunLength

_REPEATS = 2  # of a step, after one to warm up
_SAMPLED = 25  # images at a time
_DRAWN = 101  # lists of scales, of which training is timed with the one of the median length


def measure_costs(runs: StudyRuns, rows: Sequence[StudyRow]) -> None:
    """Time what no cost is known of on this kind of machine, into cost.json; and print the hours of all.

    Args:
        runs: Of the study.
        rows: Those that are timed.

    Raises:
        AtWorkError: Another process times rows: it would be in the way, and write the same file.
    """
    device = best_device()
    with alone_in(runs.runs / "cost"):
        machine, costs = describe(device), read_costs(runs.results)
        for row in rows:
            is_timed = isinstance(row, TrainedRow) or (isinstance(row, SamplingRow) and row.samples)
            if not is_timed or (row.name in costs and costs[row.name].machine == machine):
                continue
            costs[row.name] = _TIMED[type(row)](runs, row, device)
            print(f"{row.name}: {costs[row.name]}", flush=True)
            write_costs(runs.results, costs)
    of_rows = hours(runs.study, {name: cost for name, cost in costs.items() if cost.machine == machine})
    for name, spent in of_rows.items():
        print(f"{spent:8.2f} h  {name}")
    print(f"{sum(of_rows.values()):8.2f} h  in all on {machine}")


def _of_generator(runs: StudyRuns, row: GeneratorRow, device: torch.device) -> Cost:
    """On random latents, or on images where its config has no cached ones."""
    subject = _generator(runs, row, device)
    per_image, schedules = _seconds_per_image(subject), subject.module.schedules
    if schedules is not None:
        drawn = sorted((schedules.draw(0, step) for step in range(_DRAWN)), key=lambda schedule: schedule.num_tokens)
        subject = _generator(runs, row, device, drawn[_DRAWN // 2])
    step = TrainJob(subject, row.batch_size, loader=not row.reads_latents, plain=False)
    return _cost(subject.model.generator, step.run, device, seconds_per_image=per_image)


def _of_sampling(runs: StudyRuns, row: SamplingRow, device: torch.device) -> Cost:
    subject = _generator(runs, row.of, device, row.scales)
    return Cost(machine=describe(device), seconds_per_image=_seconds_per_image(subject))


def _generator(runs: StudyRuns, row: GeneratorRow, device: torch.device, scales: object = None) -> Subject:
    """With random weights; its own scales are others, if they are given."""
    others = [] if scales is None else [f"--model.transformer.scales={scales}"]
    weights = ("--model.tokenizer.weights=null", "--data.latents_dir=null")
    return build_subject([*_arguments(runs, row), *weights, *others], device)


def _seconds_per_image(subject: Subject) -> float:
    return _seconds(SampleJob(subject, _SAMPLED, decoder=True).run, subject.device) / _SAMPLED


def _of_tokenizer(runs: StudyRuns, row: TokenizerRow, device: torch.device) -> Cost:
    """On a batch of its images."""
    subject = build_subject(_arguments(runs, row), device)
    module = subject.module.train()
    batch = next(iter(subject.batches()))
    image_BCHW, request = batch.inputs.to(device), module.request(batch)
    run = RunLength(row.batch_size, 1.0, row.steps)
    optimizer = module.optimizer.build([module.tokenizer, module.loss], run)["optimizer"]

    def step() -> None:
        with subject.autocast():
            reconstructions = module.tokenizer.reconstruct(image_BCHW, request)
            loss = module.loss(reconstructions, module.tokenizer.last_layer, 0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _cost(module.tokenizer, step, device)


def _arguments(runs: StudyRuns, row: TrainedRow) -> list[str]:
    """Of its config; nothing is written where its run would lie."""
    return runs.arguments(row, row.seeds[0], runs.folder(row, row.seeds[0]))


def _cost(parts: nn.Module, step: Callable[[], object], device: torch.device, **more: float) -> Cost:
    step()
    return Cost(
        machine=describe(device),
        parameters=sum(parameter.numel() for parameter in parts.parameters()),
        seconds_per_step=min(_seconds(step, device) for _ in range(_REPEATS)),
        **more,
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """One thread's are those that a CPU computed: what else it did in between is left out."""
    start = time.process_time()
    passed = stopwatch(run, device)
    return time.process_time() - start if device.type == "cpu" and torch.get_num_threads() == 1 else passed


_TIMED = {GeneratorRow: _of_generator, SamplingRow: _of_sampling, TokenizerRow: _of_tokenizer}
