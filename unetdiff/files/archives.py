"""Unpacking of tar archives inside a folder."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

from unetdiff.errors import FileError
from unetdiff.files.folders import regular_file


def extract_archive(archive: Path, target: Path) -> None:
    """Unpack a tar archive, compressed or not, to a folder.

    Members that would be written outside of it (absolute paths, "..", links to elsewhere) and devices are refused, by
    Python's filter "data" (PEP 706).

    Raises:
        FileError: the archive is missing, damaged, or has such a member; or the folder cannot be written.
    """
    try:
        with tarfile.open(regular_file(archive)) as tar:
            tar.extractall(target, filter="data")
    except FileError:
        raise
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileError.of(archive, f"cannot be unpacked ({reason})") from error
