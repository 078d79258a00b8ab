"""UTF-8 text, with or without a byte order mark, and lists with one name per line."""

from __future__ import annotations

from pathlib import Path

from unetdiff.errors import FileError
from unetdiff.files.folders import regular_file

MAX_BYTES = 1 << 28
"""Largest text that is read, 256 MiB."""
BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(path: str | Path, max_bytes: int = MAX_BYTES, remedy: str = "") -> str:
    """A text file in UTF-8; a byte order mark is dropped, and line ends become "\\n".

    Raises:
        FileError: it does not exist, is not a regular file, is larger than `max_bytes`, or is not UTF-8.
    """
    data = read_bytes(path, max_bytes, remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = BYTE_ORDER_MARKS.get(data[:2], "another encoding")
        line = data.count(b"\n", 0, error.start) + 1
        reason = f"must be UTF-8 (got {encoding}, byte {error.start} in line {line})"
        raise FileError.of(path, reason, "Save it as UTF-8.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file, stripped, empty ones included (their numbers are those of the file).

    Raises:
        FileError: as of `read_text`.
    """
    return [line.strip() for line in read_text(path).split("\n")]


def read_start(path: str | Path, count: int) -> bytes:
    """The first `count` bytes of a regular file, fewer where it is shorter. Errors as of `read_bytes`."""
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise FileError.from_os_error(path, error) from None


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES, remedy: str = "") -> bytes:
    """The content of a regular file.

    Raises:
        FileError: it does not exist, is not a regular file, cannot be read, or is larger than `max_bytes`.
    """
    path = regular_file(path, remedy)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise FileError.from_os_error(path, error, remedy) from None
    if len(data) > max_bytes:
        raise FileError.of(path, f"must be at most {max_bytes:,} bytes (got {path.stat().st_size:,})", remedy)
    return data
