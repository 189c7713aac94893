"""A process for each of the things compared: none of them meets the memory, the caches or the allocator of another."""

import argparse
import multiprocessing
import os
import traceback
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Any

import torch

from scalear.benchmark.jobs import Job
from scalear.benchmark.setting import Setting
from scalear.benchmark.subject import Build, Subject
from scalear.benchmark.time_shares import shares
from scalear.benchmark.timing import peak_rss_bytes, yardstick
from scalear.benchmark.work import Work, counted_work, official_work
from scalear.fast.allocator import passing_settings_on
from scalear.hardware.machine import stopwatch


class Worker:
    """A fresh process that makes a job, and runs it when told to. A context: at its end the process ends.

    Args:
        setting: Names the job.
        build: Makes the parts of its config; can be pickled.
    """

    def __init__(self, setting: Setting, build: Build) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(setting, build, other))
        with nullcontext() if setting.options.plain else passing_settings_on():
            self._process.start()
        other.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        self._process.join()

    def ask(self, what: str) -> Any:
        """Call a method of `Bench` there.

        Raises:
            ValueError: What went wrong there.
            argparse.ArgumentError: The same, about an argument.
        """
        try:
            self._connection.send(what)
            kind, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            if self._process.exitcode == 0:  # it printed what was asked for, as by --print_config
                raise SystemExit(0) from None
            raise RuntimeError(
                f"the process of a benchmark ended with exit code {self._process.exitcode}"
                + (": was there enough memory?" if self._process.exitcode == -9 else "")
            ) from None
        if kind == "argument error":
            raise argparse.ArgumentError(None, answer)
        if kind == "error":
            raise ValueError(answer)
        return answer


class Bench:
    """What a worker process does."""

    def __init__(self, setting: Setting, build: Build) -> None:
        if setting.options.threads:
            torch.set_num_threads(setting.options.threads)
        self._setting, self._build = setting, build
        self._subject, self._job = self._make(setting.options.batch, setting.options.plain)

    def warm_up(self) -> tuple[int, dict[str, Any]]:
        """Runs that are not timed. Images of a run, and how it is carried out."""
        for _ in range(self._setting.options.warmup):
            self._job.run()
        return self._job.images, self._subject.how()

    def repeat(self) -> tuple[float, float]:
        """Seconds of a run, and TFLOP/s of the yardstick around it."""
        device, dtype = self._setting.device, self._subject.product_dtype
        before = yardstick(device, dtype)
        seconds = stopwatch(self._job.run, device)
        return seconds, (before + yardstick(device, dtype)) / 2

    def peak(self) -> int:
        return peak_rss_bytes()

    def parts(self) -> dict[str, float]:
        subject = self._subject
        return shares(self._job.run, subject.module if subject.model is None else subject.model.generator)

    def work(self) -> Work:
        """Of an image."""
        setting = self._setting
        if setting.options.job == "load":
            return Work(None, "none")
        # A config that something was typed over is another model or sampler than the one that was counted.
        if len(setting.config_args) == 2:
            decoded = setting.options.job == "sample" and setting.options.decoder == "in"
            known = official_work(setting.options.job, setting.config, decoded)
            if known is not None:
                return known
        subject, job = self._make(batch=1, plain=True)
        if setting.options.job != "train":
            # The counter would hang hooks on gradients. Parameters have to seem trainable while they are timed, though:
            # autocast keeps the casts of no others.
            subject.module.requires_grad_(False)
        return counted_work(job.run, images=1)

    def _make(self, batch: int, plain: bool) -> tuple[Subject, Job]:
        args = [*self._setting.config_args, *(["--model.fast=false"] if plain else [])]
        subject = self._build(args, self._setting.device)
        return subject, self._setting.job(subject, batch)


def _serve(setting: Setting, build: Build, connection: Connection) -> None:
    bench = None
    while True:
        try:
            what = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            bench = bench or Bench(setting, build)
            answer = "answer", getattr(bench, what)()
        except (argparse.ArgumentError, ValueError, OSError, RuntimeError) as error:
            if os.environ.get("SCALEAR_TRACEBACK"):
                traceback.print_exc()
            answer = "argument error" if isinstance(error, argparse.ArgumentError) else "error", str(error)
        except KeyboardInterrupt:
            return
        connection.send(answer)
