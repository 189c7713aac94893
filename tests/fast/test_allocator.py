"""Settings of the C allocator hold for a whole process, so fresh ones are asked."""

import ctypes
import os
import subprocess
import sys

import pytest

from scalear.fast.allocator import passing_settings_on, with_settings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc"),
]

SCRIPT = """
import ctypes
import resource
import sys
from pathlib import Path
from scalear.fast.allocator import keep_memory, return_memory

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


def started(script: str) -> list[str]:
    """What a process prints whose command is not there."""
    environment = clean_environment() | {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
    command = [sys.executable, "-c", script, "no_command"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "no command 'no_command'" in done.stderr
    return done.stdout.splitlines()


def test_commands_take_the_settings_once_and_do_not_pass_them_on():
    lines = started(
        "import os; print('start'); from scalear.__main__ import main; main(); main(); "
        "print(os.environ['GLIBC_TUNABLES'])"
    )
    assert lines == ["start", "start", "glibc.pthread.rseq=0"]


@pytest.mark.parametrize(
    "reason",
    [
        "sys.argv[1:] = ['no_command', '--set=here']",
        "sys.settrace(lambda *args: None)",
        pytest.param(
            "sys.monitoring.use_tool_id(sys.monitoring.DEBUGGER_ID, 'debugger')",
            marks=pytest.mark.skipif(not hasattr(sys, "monitoring"), reason="Python 3.11"),
        ),
    ],
)
def test_scripts_that_set_arguments_and_debuggers_keep_their_process(reason):
    lines = started(f"import sys; print('start'); {reason}; from scalear.__main__ import main; main()")
    assert lines == ["start"]


@pytest.mark.parametrize("environment", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}])
def test_what_the_user_chose_stays(environment):
    assert with_settings(environment) is None


def test_other_tunables_stay(monkeypatch):
    other = "glibc.pthread.rseq=0"
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("GLIBC_TUNABLES", other)
    with passing_settings_on():
        assert os.environ["GLIBC_TUNABLES"].startswith(f"{other}:glibc.malloc.")
    assert os.environ["GLIBC_TUNABLES"] == other
