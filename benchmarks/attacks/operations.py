"""Count the operations on files below a directory, and die at one of them."""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Moment = Literal["before", "half", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "half", "after")
RENAMES = ("replace", "rename", "link", "symlink")
OTHERS = ("unlink", "remove", "mkdir", "rmdir", "fsync", "truncate", "ftruncate")


class Operations:
    """Counts renames, deletions, new directories, fsyncs and files opened for writing, below `root`.

    Args:
        root: the directory; operations elsewhere do not count.
        number: SIGKILL at this operation, counted from 1; None: never.
        moment: before it, after it, or with half of what is written to the file.
        log: a file that receives a line per operation.
    """

    def __init__(self, root: Path, number: int | None, moment: Moment = "before", log: Path | None = None) -> None:
        self.root = os.path.abspath(root)
        self.number = number
        self.moment = moment
        self.count = 0
        self.log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def install(self) -> None:
        """Patch `os`, `io` and `open` in this process, which is a forked child."""
        for name in (*RENAMES, *OTHERS):
            setattr(os, name, self._counted(name, getattr(os, name)))
        plain_open, plain_os_open = builtins.open, os.open

        def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or not self._is_ours(file):
                return plain_open(file, mode, *args, **options)
            due = self._due("open", file)
            if due and self.moment == "before":
                _die()
            handle = plain_open(file, mode, *args, **options)
            if due:
                return _die() if self.moment == "after" else HalfWritten(handle)
            return handle

        def os_opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            due = bool(writes) and self._is_ours(path) and self._due("os.open", path)
            if due and self.moment == "before":
                _die()
            handle = plain_os_open(path, flags, *args, **options)
            return _die() if due else handle

        builtins.open = io.open = opened  # type: ignore[assignment]
        os.open = os_opened  # type: ignore[assignment]

    def _counted(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            due = self._is_ours(args[0], options.get("dir_fd")) and self._due(name, args[0])
            if due and self.moment == "before":
                _die()
            result = plain(*args, **options)
            return _die() if due else result

        return call

    def _due(self, name: str, path: Any) -> bool:
        self.count += 1
        if self.log is not None:
            os.write(self.log, f"{self.count} {name} {path}\n".encode())
        return self.count == self.number

    def _is_ours(self, path: Any, folder: int | None = None) -> bool:
        try:
            if folder is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
            elif isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            return os.path.abspath(os.fsdecode(path)).startswith(self.root)
        except (OSError, TypeError, ValueError):
            return False


class HalfWritten:
    """A file whose first write arrives half, after which the process dies."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, data: Any) -> Any:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        _die()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def _die() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
