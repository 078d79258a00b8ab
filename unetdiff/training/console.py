"""The terminal of a long run: a lost or full stderr (`| head`, a closed session, /dev/full) does not end the run."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any


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
