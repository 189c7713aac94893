"""How glibc's allocator treats the large blocks that tensors are.

Every step of training asks for gigabytes and frees them. By default glibc maps the largest blocks anew each time and
returns what is free at the end of the heap, so that the kernel clears the same pages step after step.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_TUNABLES = "GLIBC_TUNABLES"
_SETTINGS = {  # https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
    # Freed memory stays in the process, for the next step.
    "mmap_max": 0,
    "trim_threshold": 1 << 40,
    # Blocks of tensors are aligned, which leaves a few bytes beside each. In lists of small blocks these would be used
    # for other things before they are joined with their tensor again, whose place then never holds its like.
    "tcache_count": 0,
    "mxfast": 0,
    # Large pages, where the system gives them to those who ask.
    "hugetlb": 1,
}
_OURS = ":".join(f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())


def keep_memory() -> None:
    """Start this process anew under settings of the allocator that suit tensors, which glibc reads at the start only.

    Processes that it starts inherit them. Does nothing where they hold already, where the user sets the allocator by
    variables of the environment (MALLOC_..., GLIBC_TUNABLES for malloc), under a debugger, which would lose this
    process, nor with another C library.
    """
    settings = with_settings(os.environ)
    if settings is not None and _of_glibc("malloc_trim") and sys.executable and sys.gettrace() is None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], settings)


def with_settings(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment with our settings; None if it has settings of the allocator, ours or the user's."""
    tunables = environment.get(_TUNABLES, "")
    if "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in environment):
        return None
    return {**environment, _TUNABLES: f"{tunables}:{_OURS}".lstrip(":")}


@contextmanager
def without_settings() -> Iterator[None]:
    """Processes started inside have the allocator as it comes."""
    tunables = os.environ.get(_TUNABLES, "")
    if not tunables.endswith(_OURS):
        yield
        return
    os.environ[_TUNABLES] = tunables.removesuffix(_OURS)
    try:
        yield
    finally:
        os.environ[_TUNABLES] = tunables


def return_memory() -> None:
    """Give the system back what is free: after work that will not come again, like building models."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> "ctypes._CFuncPtr | None":
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # no C library to be found that way, as on Windows
        return None
