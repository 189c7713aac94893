"""How many threads PyTorch may start."""

import os
from pathlib import Path

import pytest

from scalear.hardware import cpus


@pytest.mark.skipif(not Path("/proc/self/cgroup").is_file(), reason="control groups are Linux's")
@pytest.mark.parametrize("files", [{"cpu.max": "{} 100000"}, {"cpu.cfs_quota_us": "{}", "cpu.cfs_period_us": "100000"}])
def test_threads_of_a_container_are_respected(files, monkeypatch, tmp_path):
    def limit(quota: str) -> None:
        for name, text in files.items():
            (tmp_path / name).write_text(text.format(quota) + "\n")

    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit("max" if "cpu.max" in files else "-1")
    assert cpus.allowed_cpus() == len(os.sched_getaffinity(0))
    cpus.respect_container()
    assert "OMP_NUM_THREADS" not in os.environ  # no limit: PyTorch chooses
    limit("100000")
    assert cpus.allowed_cpus() == 1
    cpus.respect_container()
    assert os.environ["OMP_NUM_THREADS"] == "1"
