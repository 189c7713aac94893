"""Samples of jobs that are killed, that share the work, and that may not touch those of others."""

import json
import signal
import time
from pathlib import Path

import pytest
from cli_fixtures import Experiment, run
from process_fixtures import finish_well, run_on_two_ranks, start

from scalear.training.generator.module import GeneratorModule

MANY = ["--model.samples.num_per_class=10", "--model.samples.batch_size=2"]  # 15 batches


def command(experiment: Experiment, folder: Path) -> list[str]:
    return [*experiment.generator(folder), f"--ckpt_path={experiment.checkpoint('flowar')}", *MANY]


@pytest.fixture(scope="module")
def undisturbed(experiment: Experiment) -> Path:
    """Samples and numbers of one job on one process."""
    folder = experiment.root / "undisturbed"
    assert run("test", *command(experiment, folder)) == 0
    return folder


@pytest.fixture
def sampled(monkeypatch) -> list[int]:
    """First image of every batch that this process samples."""
    places, sample = [], GeneratorModule.generate_images
    counted = lambda module, label_B, seed, batch: (places.append(batch[0]), sample(module, label_B, seed, batch))[1]  # noqa: E731
    monkeypatch.setattr(GeneratorModule, "generate_images", counted)
    return places


def test_a_killed_job_goes_on_where_it_was(experiment: Experiment, undisturbed, tmp_path, sampled, capsys):
    typed = command(experiment, tmp_path)
    process = start("test", *typed)
    partial = tmp_path / "samples.partial"
    while process.returncode is None and len(list(partial.glob("[0-9]*.npz"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.finish()
    assert process.returncode == 130, output
    there = {path.name: path.stat().st_mtime_ns for path in partial.glob("[0-9]*.npz")}
    assert 3 <= len(there) < 15 and not (tmp_path / "samples.npz").exists()

    assert run("predict", *typed, "--model.guidance.weight=2") == 2
    error = capsys.readouterr().err
    assert f"{partial} is there, of other settings (model.guidance.weight 4.5 there, 2.0 here)" in error
    assert "--force" in error
    assert {path.name: path.stat().st_mtime_ns for path in partial.glob("[0-9]*.npz")} == there

    damaged = partial / min(there)
    damaged.write_bytes(damaged.read_bytes()[:-50])
    assert run("test", *typed) == 0
    assert sampled == [0, *range(2 * len(there), 30, 2)]
    for name in ("samples.npz", "grid.png", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not partial.exists()

    sampled.clear()  # a job that was killed while it measured
    (tmp_path / "metrics.json").unlink()
    assert run("test", *typed) == 0
    assert sampled == []
    assert (tmp_path / "metrics.json").read_bytes() == (undisturbed / "metrics.json").read_bytes()
    assert run("predict", *typed, "--force") == 0
    assert len(sampled) == 15


def test_two_ranks_sample_and_measure_as_one(experiment: Experiment, undisturbed, tmp_path):
    run_on_two_ranks("test", *command(experiment, tmp_path))
    assert (tmp_path / "samples.npz").read_bytes() == (undisturbed / "samples.npz").read_bytes()
    by_one, by_two = (json.loads((folder / "metrics.json").read_text()) for folder in (undisturbed, tmp_path))
    for name, value in by_one.items():
        assert by_two[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), name


def test_jobs_of_their_own_share_a_sample_set(experiment: Experiment, undisturbed, tmp_path, sampled, caplog):
    typed = command(experiment, tmp_path)
    assert run("test", *typed, "--model.samples.part=2/3") == 0
    assert "20 of 30 samples are missing: 0-9, 20-29." in caplog.text
    assert sampled == [10, 12, 14, 16, 18]
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "samples.npz").exists()
    processes = [start("test", *typed, f"--model.samples.part={number}/3") for number in (1, 3)]  # at the same time
    finish_well(*processes)
    for name in ("samples.npz", "grid.png", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not (tmp_path / "samples.partial").exists()
