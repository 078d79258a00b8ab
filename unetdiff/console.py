"""The terminal of a long task, and its progress.

A lost or full stderr (`| head`, a closed session, /dev/full) does not end the task.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from typing import Any

from tqdm import tqdm


class Console:
    """A text stream that ignores what cannot be written; sys.stderr without another."""

    def __init__(self, stream: Any = None) -> None:
        self.stream: Any = sys.stderr if stream is None else stream

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except (OSError, ValueError, AttributeError):  # gone, closed, or there is none
            pass
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except (OSError, ValueError, AttributeError):
            return False

    def fileno(self) -> int:
        return self.stream.fileno()


def say(text: str, stream: Any = None) -> None:
    """Print a line to a stream, sys.stderr without one, if that is possible."""
    console = Console(stream)
    console.write(f"{text}\n")
    console.flush()


LINE_SECONDS = 30.0
"""Seconds between progress lines where standard error is not a terminal."""


def progress_bar(
    iterable: Iterable[Any] | None = None,
    total: int | None = None,
    desc: str = "",
    unit: str = "step",
    leave: bool = True,
    initial: int = 0,
    enabled: bool = True,
    status: Callable[[], str] | None = None,
) -> Any:
    """A progress bar on standard error; where that is not a terminal, a line every `LINE_SECONDS`.

    Args:
        iterable: what is counted as it is iterated; None: call `update`.
        total: its length; None: `len(iterable)`, if it has one.
        desc: of the bar.
        unit: what is counted, singular.
        leave: keep the finished bar in the terminal.
        initial: count at the start.
        enabled: show it; it is never shown with UNETDIFF_NO_BAR in the environment.
        status: what a line says after the count, instead of the speed.

    Returns:
        A tqdm, or a `ProgressLines`, which has its `update`, `close`, `n` and iteration.
    """
    console = Console()
    shown = enabled and os.environ.get("UNETDIFF_NO_BAR") is None
    if shown and not console.isatty():
        return ProgressLines(iterable, total, desc, unit, initial, status)
    options: dict[str, Any] = {"mininterval": 0.5, "dynamic_ncols": True, "leave": leave, "initial": initial}
    return tqdm(iterable, total=total, desc=desc or None, unit=unit, file=console, disable=not shown, **options)


class ProgressLines:
    """The progress of a long task as lines: count, speed and remaining time. Arguments as of `progress_bar`."""

    def __init__(
        self,
        iterable: Iterable[Any] | None,
        total: int | None,
        desc: str,
        unit: str,
        initial: int = 0,
        status: Callable[[], str] | None = None,
    ) -> None:
        self.iterable, self.desc, self.unit, self.status = iterable, desc, unit, status
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self.n = self.initial = initial
        self.start = self.printed = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        assert self.iterable is not None
        for item in self.iterable:
            yield item
            self.update()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count n more, and print a line if it is time."""
        self.n += n
        now = time.monotonic()
        if n and now - self.printed >= LINE_SECONDS:
            self.printed = now
            say(self.line(now - self.start))

    def line(self, seconds: float) -> str:
        """ "sampling: 12/40 batches (30 %), 0.20 batches/s, ETA 2 min 20 s" after so many seconds."""
        speed = (self.n - self.initial) / max(seconds, 1e-9)
        plural = f"{self.unit}es" if self.unit.endswith("ch") else f"{self.unit}s"
        of = "" if self.total is None else f"/{self.total}"
        part = "" if not self.total else f" ({self.n / self.total:.0%})".replace("%", " %")
        parts = [f"{self.n}{of} {plural}{part}", self.status() if self.status else f"{speed:.3g} {plural}/s"]
        if self.total and speed:
            parts.append(f"ETA {duration((self.total - self.n) / speed)}")
        return f"{self.desc}: {', '.join(parts)}" if self.desc else ", ".join(parts)

    def set_postfix(self, *args: object, **values: object) -> None:
        """tqdm's; a line has its `status` instead."""

    def close(self) -> None:
        """tqdm's; nothing to do."""


def duration(seconds: float) -> str:
    """200 -> "3 min 20 s"; 4000 -> "1 h 6 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
