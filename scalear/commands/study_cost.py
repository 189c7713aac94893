"""`scalear study --cost`: a training step and sampling of every row, timed once."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from scalear.benchmark.jobs import SampleJob, TrainJob
from scalear.commands.benchmark import build_subject
from scalear.commands.study_rows import StudyRuns
from scalear.hardware.machine import best_device, describe, stopwatch
from scalear.study.cost import Cost, hours, read_costs, write_costs
from scalear.study.plan import GeneratorRow, StudyRow, TokenizerRow, TrainedRow
from scalear.training.optim import RunLength

_REPEATS = 2  # of a step, after one to warm up
_SAMPLED = 25  # images at a time


def measure_costs(runs: StudyRuns, rows: Sequence[StudyRow]) -> None:
    """Time what no cost is known of on this kind of machine, into cost.json; and print the hours of all.

    Args:
        runs: Of the study.
        rows: Those that are timed.
    """
    device = best_device()
    machine, costs = describe(device), read_costs(runs.results)
    for row in rows:
        if not isinstance(row, TrainedRow) or (row.name in costs and costs[row.name].machine == machine):
            continue
        time_it = _of_generator if isinstance(row, GeneratorRow) else _of_tokenizer
        costs[row.name] = time_it(runs, row, device)
        print(f"{row.name}: {costs[row.name]}", flush=True)
        write_costs(runs.results, costs)
    of_rows = hours(runs.study, costs)
    for name, spent in of_rows.items():
        print(f"{spent:8.2f} h  {name}")
    print(f"{sum(of_rows.values()):8.2f} h  in all on {machine}")


def _of_generator(runs: StudyRuns, row: GeneratorRow, device: torch.device) -> Cost:
    """On random latents, or on images where its config has no cached ones; with random weights."""
    args = [*_arguments(runs, row), "--model.tokenizer.weights=null", "--data.latents_dir=null"]
    subject = build_subject(args, device)
    parts = subject.model.generator
    per_image = _seconds(SampleJob(subject, _SAMPLED, decoder=True).run, device) / _SAMPLED
    step = TrainJob(subject, row.batch_size, loader=not row.reads_latents, plain=False)
    return _cost(parts, step.run, device, seconds_per_image=per_image)


def _of_tokenizer(runs: StudyRuns, row: TokenizerRow, device: torch.device) -> Cost:
    """On a batch of its images."""
    subject = build_subject(_arguments(runs, row), device)
    module = subject.module.train()
    batch = next(iter(subject.batches()))
    image_BCHW, request = batch.inputs.to(device), module.request(batch)
    run = RunLength(row.batch_size, 1.0, row.steps)
    optimizer = module.optimizer.build([module.tokenizer, module.loss], run)["optimizer"]

    def step() -> None:
        reconstructions = module.tokenizer.reconstruct(image_BCHW, request)
        module.loss(reconstructions, module.tokenizer.last_layer, 0)["loss"].backward()
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
    """Of one thread on a CPU those that it computed: what else the CPU did in between is left out."""
    start = time.process_time()
    passed = stopwatch(run, device)
    return time.process_time() - start if device.type == "cpu" and torch.get_num_threads() == 1 else passed
