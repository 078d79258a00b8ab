"""One process per run directory: a lock that the system releases when its process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unetdiff.errors import FileError

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]


_held: set[int] = set()
"""Open locks of this process. A forked one (of a data loader) closes them, as it may outlive its parent."""


def _close_inherited() -> None:
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of an existing directory. No file is written: the lock is on the directory itself.

    Raises:
        FileError: another process holds it (named by its id where the system shows it).
    """
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise FileError.from_os_error(directory, error) from None
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _holder(handle)
            who = f"process {other}" if other else "another process"
            raise FileError.of(
                directory, f"is in use by {who}", "Wait for it, stop it, or give another directory."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        if handle in _held:
            _held.discard(handle)
            os.close(handle)


def _holder(handle: int) -> int | None:
    """The process that holds the lock of an open file, from Linux's /proc/locks; None where that is not known."""
    status = os.fstat(handle)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and device in words:
                return int(words[4])
    return None
