"""Settings of the C allocator hold for a whole process, so a fresh one is asked."""

import ctypes
import os
import subprocess
import sys

import pytest

from scalear.allocator import keep_memory

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")

SCRIPT = """
import ctypes
import resource
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

assert grown_by_freed_blocks() < 50
assert keep_memory({})
assert grown_by_freed_blocks() > 150
return_memory()
assert grown_by_freed_blocks() > 150
return_memory()
print(megabytes())
"""


def test_memory_is_kept_until_it_is_returned():
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


@pytest.mark.parametrize("environment", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}])
def test_what_the_user_chose_stays(environment):
    assert not keep_memory(environment)
