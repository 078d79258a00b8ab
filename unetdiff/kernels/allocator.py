"""Freed memory of a process on Linux: keep it for the next tensor, or return it to the system."""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3), as glibc numbers them


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory instead of returning it to the system page by page.

    Every training step allocates and frees the same large tensors; on a CPU the page faults took 7 % of a step. Peak
    memory is the same, but the process stays that large.

    Returns:
        Whether it takes effect: False on another system or C library, or if the environment configures malloc
        (MALLOC_..., GLIBC_TUNABLES).
    """
    configured = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if configured or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(TRIM_THRESHOLD, -1)) and bool(mallopt(MMAP_MAX, 0))


def return_freed_memory() -> bool:
    """Return every free page to the system, including holes between tensors.

    For after replacing many tensors by others of another size, which do not fit into the holes.

    Returns:
        Whether memory was returned; False on another system or C library.
    """
    return _is_glibc() and bool(ctypes.CDLL(None).malloc_trim(0))


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
