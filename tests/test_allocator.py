"""Settings of the C allocator hold for a whole process, so fresh ones are asked."""

import ctypes
import os
import subprocess
import sys

import pytest

from scalear.allocator import with_settings, without_settings

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")

SCRIPT = """
import ctypes
import resource
import sys
from pathlib import Path
from scalear.allocator import keep_memory, return_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
megabytes = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def grown_by_freed_blocks():
    before = megabytes()
    for size in (200 << 20, 20 << 20):  # mapped by default; at the end of the heap
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)
        libc.free(block)
    return megabytes() - before

print(sys.argv[1], grown_by_freed_blocks(), flush=True)
keep_memory()
return_memory()
print(megabytes())
"""


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}


def test_a_process_starts_anew_with_its_arguments_and_keeps_memory_until_it_is_returned():
    command = [sys.executable, "-c", SCRIPT, "argument"]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, left = done.stdout.splitlines()
    assert first.split()[0] == second.split()[0] == "argument"
    assert float(first.split()[1]) < 50
    assert float(second.split()[1]) > 150
    assert float(left) < 100


def test_commands_take_the_settings():
    command = [sys.executable, "-c", "import os; from scalear.__main__ import main; main(); print(dict(os.environ))"]
    command += ["no_command"]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    assert "no command 'no_command'" in done.stderr
    assert "glibc.malloc.mmap_max=0" in done.stdout


@pytest.mark.parametrize("environment", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}])
def test_what_the_user_chose_stays(environment):
    assert with_settings(environment) is None


def test_other_tunables_stay(monkeypatch):
    other = "glibc.pthread.rseq=0"
    ours = with_settings({"GLIBC_TUNABLES": other})
    assert ours["GLIBC_TUNABLES"].startswith(f"{other}:glibc.malloc.")
    assert with_settings(ours) is None
    monkeypatch.setenv("GLIBC_TUNABLES", ours["GLIBC_TUNABLES"])
    with without_settings():
        assert os.environ["GLIBC_TUNABLES"].rstrip(":") == other
    assert os.environ["GLIBC_TUNABLES"] == ours["GLIBC_TUNABLES"]
