"""Commands in forked children: torch is imported once, each command has its own directory, streams, limits and fate."""

from __future__ import annotations

import ctypes
import io
import os
import pkgutil
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

TIME_LIMIT = 20.0
"""Seconds before a command counts as hung and is killed with its children."""
MEMORY_LIMIT = 2 << 30
"""Bytes that a process may take at its peak, torch's own included."""
KILL_ABOVE = 3 << 30
"""Bytes at which it is killed, to spare the machine."""
_POLL = 0.05
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2  # capabilities that let root read and write everything


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int | None
    """Exit status; None: killed by a signal."""
    signal: int | None
    """The signal that ended it, if one did."""
    seconds: float
    peak: int
    """Largest resident memory in bytes, of it or a child that it waited for."""
    stdout: str
    stderr: str
    hung: bool
    """Killed at the time limit."""


def preload() -> None:
    """Import torch and every module of unetdiff, with one thread, so that the children need not."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "UNETDIFF_NO_BAR"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    import atexit
    import gc

    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import unetdiff

    for module in pkgutil.walk_packages(unetdiff.__path__, "unetdiff."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # the children do not copy the pages of what stays
    atexit.register(gc.unfreeze)


def command(argv: Sequence[str]) -> Callable[[], int]:
    """`unetdiff ARGV` as a function, with its exit status."""

    def run() -> int:
        from unetdiff.cli.main import main

        return main(list(argv))

    return run


def run_forked(
    function: Callable[[], int],
    folder: Path,
    streams: Path,
    limit: float = TIME_LIMIT,
    stdin: bytes | Path | None = None,
    kill_after: float | None = None,
) -> Result:
    """Run a function in a forked child and wait for it.

    Args:
        function: returns the exit status; an exception is printed as Python prints it, with status 1.
        folder: its working and home directory.
        streams: a directory for its stdout and stderr.
        limit: seconds.
        stdin: bytes or a file on its standard input; None: empty.
        kill_after: SIGKILL after so many seconds.
    """
    streams.mkdir(parents=True, exist_ok=True)
    source = streams / "stdin"
    source.write_bytes(stdin if isinstance(stdin, bytes) else b"")
    entry = stdin if isinstance(stdin, Path) else source
    start = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(function, folder, entry, streams)  # does not return
    hung, usage, status = _wait(pid, start, limit, kill_after)
    code = os.waitstatus_to_exitcode(status)
    return Result(
        status=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        seconds=time.monotonic() - start,
        peak=usage.ru_maxrss * 1024,
        stdout=_read(streams / "stdout"),
        stderr=_read(streams / "stderr"),
        hung=hung,
    )


def _wait(pid: int, start: float, limit: float, kill_after: float | None) -> tuple[bool, object, int]:
    """(hung, resource usage, wait status) of a child; it is killed at the limits."""
    hung = False
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while True:
            now = time.monotonic() - start
            wake = _POLL if kill_after is None else max(0.0, min(_POLL, kill_after - now))
            if poll.poll(wake * 1000):
                break
            now = time.monotonic() - start
            hung = hung or now > limit
            if hung or (kill_after is not None and now >= kill_after) or resident(pid) > KILL_ABOVE:
                _kill_group(pid)
    finally:
        os.close(handle)
    _, status, usage = os.wait4(pid, 0)
    _kill_group(pid)  # loader workers that outlived it
    return hung, usage, status


def _child(function: Callable[[], int], folder: Path, stdin: Path, streams: Path) -> None:
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        _open_as(0, stdin, os.O_RDONLY)
        _open_as(1, streams / "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _open_as(2, streams / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False), encoding="utf-8")
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8", line_buffering=True)
        sys.stderr = io.TextIOWrapper(
            os.fdopen(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        os.chdir(folder)
        os.environ |= {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home" / ".cache")}
        obey_permissions()
        random.seed(0)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)  # a fork has none of its parent's threads
        status = function()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                status = 120  # as Python exits
        os._exit((status or 0) & 0xFF)


def _open_as(number: int, path: Path, flags: int) -> None:
    handle = os.open(path, flags, 0o644)
    os.dup2(handle, number)
    os.close(handle)


def obey_permissions() -> None:
    """As root, give up the capabilities that ignore the permissions of files (capset(2)); else nothing."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    if libc.capget(header, sets) == 0:
        sets[0] &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
        libc.capset(header, sets)


def resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        pass


def _read(path: Path) -> str:
    if not path.exists():  # killed before it was opened
        return ""
    return path.read_bytes()[:1_000_000].decode("utf-8", errors="backslashreplace")
