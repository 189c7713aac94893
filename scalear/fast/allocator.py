"""How glibc's allocator treats the large blocks that tensors are.

Every step of training asks for gigabytes and frees them. By default glibc maps the largest blocks anew each time and
returns what is free at the end of the heap, so that the kernel clears the same pages step after step.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

_TUNABLES = "GLIBC_TUNABLES"
_STARTED_ANEW = "SCALEAR_STARTED_ANEW"  # holds the id of the process, as others may inherit it
_SETTINGS = {  # https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
    # Freed memory stays in the process, for the next step.
    "mmap_max": 0,
    "trim_threshold": 1 << 40,
    # Blocks of tensors are aligned, which leaves a few bytes beside each. Lists of small blocks would hand these out
    # for other things, and the place of a freed tensor would then be a few bytes too short for the next of its size.
    "tcache_count": 0,
    "mxfast": 0,
    # Large pages, where the system gives them to those who ask.
    "hugetlb": 1,
}
_OURS = ":".join(f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())


def keep_memory() -> None:
    """Start this process anew under settings of the allocator that suit tensors, which glibc reads at the start only.

    Programs that it starts do not inherit them. Does nothing where the user sets the allocator by variables of the
    environment (MALLOC_..., GLIBC_TUNABLES for malloc), under a debugger, which would lose this process, nor with
    another C library.
    """
    if os.environ.get(_STARTED_ANEW) == str(os.getpid()):
        os.environ[_TUNABLES] = os.environ.get(_TUNABLES, "").removesuffix(_OURS).rstrip(":")
        return
    settings = with_settings(os.environ)
    if settings is None or _of_glibc("malloc_trim") is None or not sys.executable or _is_debugged():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):  # then this process goes on as it is
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**settings, _STARTED_ANEW: str(os.getpid())})


def with_settings(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment with our settings; None if the user has set the allocator there."""
    tunables = environment.get(_TUNABLES, "")
    if "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in environment):
        return None
    return {**environment, _TUNABLES: f"{tunables}:{_OURS}".lstrip(":")}


@contextmanager
def passing_settings_on() -> Iterator[None]:
    """Processes started inside keep memory from their start."""
    settings, before = with_settings(os.environ), os.environ.get(_TUNABLES, "")
    os.environ[_TUNABLES] = before if settings is None else settings[_TUNABLES]
    try:
        yield
    finally:
        os.environ[_TUNABLES] = before


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


def _is_debugged() -> bool:
    monitoring = getattr(sys, "monitoring", None)  # what debuggers take from Python 3.12 on
    return sys.gettrace() is not None or (
        monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None
    )
