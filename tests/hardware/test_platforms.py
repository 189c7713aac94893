"""What other systems than Linux lack or do otherwise: modules of Python, and processes that are spawned, not forked."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pack_fixtures import content_of, make_tree, pack_here

from scalear.data.datamodule import ShardDataModule
from scalear.data.sources import ImageFolder

pytestmark = pytest.mark.integration

_IMPORT_ALL = """
import importlib, os, pkgutil, signal, sys

for name in ("resource", "fcntl", "pwd", "grp", "termios"):  # not on Windows
    sys.modules[name] = None
import torch, lightning.pytorch  # which look at the system themselves

for module, names in (
    (os, ("posix_fallocate", "posix_fadvise", "sched_getaffinity", "sysconf", "fork", "getuid", "killpg")),
    (signal, ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "SIGQUIT")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

import scalear

for module in pkgutil.walk_packages(scalear.__path__, "scalear."):
    importlib.import_module(module.name)
    print(module.name)
"""

# What is imported at the top, spawned processes import as well.
_PACK_AND_READ = """
import multiprocessing, sys

if __name__ == "__main__":
    import torch
    from scalear.data.datamodule import ShardDataModule
    from scalear.data.pack import pack
    from scalear.data.sources import ImageFolder

    source, packed, seen = sys.argv[1:]
    multiprocessing.set_start_method("spawn")
    pack(ImageFolder(source, val_fraction=0.25), packed, image_size=16, shard_size=3, name="tiny", num_workers=2)
    data = ShardDataModule(packed, batch_size=4, num_workers=1)
    torch.save([vars(batch) for batch in data.train_dataloader()], seen)
"""


def run_python(*arguments: str | Path) -> str:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_module_can_be_imported_without_what_is_not_everywhere():
    assert len(run_python("-c", _IMPORT_ALL).split()) > 100


def test_packing_and_reading_work_with_spawned_processes(tmp_path):
    source, script, seen = make_tree(tmp_path / "source"), tmp_path / "main.py", tmp_path / "seen.pt"
    script.write_text(_PACK_AND_READ)  # a file, because spawned processes import it
    run_python(script, source, tmp_path / "spawned", seen)

    pack_here(ImageFolder(str(source), val_fraction=0.25), tmp_path / "here", shard_size=3, name="tiny")
    assert content_of(tmp_path / "spawned") == content_of(tmp_path / "here")
    data = ShardDataModule(str(tmp_path / "here"), batch_size=4)
    expected = [vars(batch) for batch in data.train_dataloader()]
    found = torch.load(seen, weights_only=True)
    assert len(found) == len(expected) > 1
    for fields, others in zip(found, expected, strict=True):
        for name, value in fields.items():
            other = others[name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
