"""Standard output and standard error that may be lost: `| head`, a `tee` that died, a full disk, an ASCII terminal.

Progress and messages on standard error are worth less than the work: where they cannot be written, the work continues
without them. What cannot be written to standard output is known at the end by the exit status, 141 for a closed pipe
(128 + SIGPIPE, as shells have it).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from unetdiff.files.writing import discard

CLOSED_PIPE = 141
"""Exit status where the reader of standard output has gone."""


class TolerantStream:
    """A text stream that drops what cannot be written, and remembers the first error.

    Args:
        stream: None: the process was started without it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error: OSError | None = None
        """The first failed write."""
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            with suppress(AttributeError, ValueError):  # e.g. class names on an ASCII terminal
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def write(self, text: str) -> int:
        """Write, or drop the text if that fails."""
        if self._stream is not None and self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self.lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what is buffered if that fails."""
        if self._stream is not None and self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self.lose(error)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def lose(self, error: OSError) -> None:
        """Remember a failed write; the file descriptor now leads nowhere, so that later flushes succeed."""
        self.error = error
        with suppress(OSError, ValueError, AttributeError):
            discard(self._stream.fileno())  # type: ignore[union-attr]

    def __getattr__(self, name: str) -> Any:  # encoding, buffer, fileno, ...
        return getattr(self._stream, name)


def write_binary(data: bytes) -> None:
    """Write bytes to standard output; lost as text is."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        if not isinstance(sys.stdout, TolerantStream):
            raise
        sys.stdout.lose(error)


@contextmanager
def tolerant_streams() -> Iterator[tuple[TolerantStream, TolerantStream]]:
    """Replace sys.stdout and sys.stderr by streams that never raise, within the context."""
    before = sys.stdout, sys.stderr
    out, err = TolerantStream(sys.stdout), TolerantStream(sys.stderr)
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def status_of(status: int, out: TolerantStream) -> int:
    """The exit status of a command, given whether its standard output arrived."""
    out.flush()
    if out.error is None or status:
        return status
    if out.error.errno in (errno.EPIPE, errno.ESHUTDOWN):
        return CLOSED_PIPE
    reason = (out.error.strerror or str(out.error)).lower()
    print(f"unetdiff: standard output: {reason}.", file=sys.stderr)
    return 2
