"""How glibc's allocator treats the large blocks that tensors are.

Every step of training asks for gigabytes and frees them. By default glibc maps the largest blocks anew each time and
returns what is free at the end of the heap, so that the kernel clears the same pages step after step.
"""

import ctypes
import os
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, <malloc.h>


def keep_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Keep freed memory in this process, for the next step.

    Does nothing where the user sets the allocator by variables of the environment (MALLOC_..., GLIBC_TUNABLES), nor
    with another C library.

    Args:
        environment: Of the process.

    Returns:
        Whether glibc took the settings.
    """
    chosen = any(name.startswith("MALLOC_") for name in environment) or "malloc" in environment.get(
        "GLIBC_TUNABLES", ""
    )
    mallopt = _of_glibc("mallopt")
    if chosen or mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


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
