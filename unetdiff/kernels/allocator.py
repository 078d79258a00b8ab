"""What a process does, on Linux, with memory that it frees: keep it for the next tensor, or give it back."""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3), as glibc numbers them


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed instead of giving it back to the system and asking for it anew, page by page.

    A step makes and frees the same large tensors every time; on a CPU that handing back and forth was found to take 7 %
    of a training step. The memory at the peak is the same; after it, the process stays that large.

    Returns:
        Whether it does from now on: False on another system or C library, or where the environment settles it
        (MALLOC_..., GLIBC_TUNABLES).
    """
    settled = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if settled or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(TRIM_THRESHOLD, -1)) and bool(mallopt(MMAP_MAX, 0))


def give_back_freed_memory() -> bool:
    """Have glibc give the system every whole page that is free, holes between tensors included, as they are now.

    For when many tensors were replaced by others of another size, which do not fit into the holes that they left.

    Returns:
        Whether something was given back; False on another system or C library.
    """
    return _is_glibc() and bool(ctypes.CDLL(None).malloc_trim(0))


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
