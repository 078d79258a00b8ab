"""Opening image files by an explicit list of formats, and saving them."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from unetdiff.errors import FileError, UserError
from unetdiff.files.folders import regular_file
from unetdiff.files.texts import read_start
from unetdiff.files.writing import write_file

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Formats that are opened, as Pillow names them. Not EPS, which would start another program."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jpe", ".jfif"}
)
"""Suffixes of these formats, in lower case."""
MAX_PIXELS = 1 << 27
"""Largest image that is decoded, 134 million pixels (11,585 x 11,585)."""
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, struct.error)
"""What Pillow raises for a damaged file."""


@contextmanager
def open_image(source: str | Path | bytes, name: str = "", remedy: str = "") -> Iterator[Image.Image]:
    """An image of one of `FORMATS`, not yet decoded: `with open_image(path) as image: ...`.

    What goes wrong while it is decoded inside the block is reported as well.

    Args:
        source: a path, or the bytes of a file.
        name: where the bytes stand, for the message.
        remedy: for the message.

    Raises:
        FileError: missing, not a regular file, not of these formats, truncated, or of more than `MAX_PIXELS` pixels.
    """
    where = Path(source) if not isinstance(source, bytes) else name or f"<{len(source)} bytes>"
    if not isinstance(source, bytes):
        regular_file(source, remedy)
    Image.init()  # loads all of Pillow's formats, once
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise too_large(where, image.width * image.height)
            yield image
    except UnidentifiedImageError:
        raise FileError.of(where, f"must be an image ({', '.join(FORMATS)})", remedy) from None
    except Image.DecompressionBombError as error:  # its text has the number of pixels first
        raise too_large(where, int((re.findall(r"\d+", str(error)) or ["0"])[0])) from None
    except UserError:  # also of what is done with the image in the block
        raise
    except DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileError.of(where, f"cannot be decoded ({reason})", remedy) from None


def is_whole_jpeg(path: str | Path) -> bool:
    """Whether a file begins as a JPEG and ends with the end-of-image marker."""
    if read_start(path, 3) != b"\xff\xd8\xff":
        return False
    with Path(path).open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read(2) == b"\xff\xd9"


def too_large(where: str | Path, pixels: int) -> FileError:
    """The error for an image of more than `MAX_PIXELS` pixels."""
    reason = f"must have at most {MAX_PIXELS:,} pixels (got {pixels:,})"
    return FileError.of(where, reason, "Resize it, or crop it into parts.")


def save_image(image: Image.Image, path: str | Path, **options: object) -> None:
    """Write an image atomically; the format follows the suffix, PNG for others.

    Raises:
        OSError: e.g. a full disk; the old file stays.
    """
    path = Path(path)
    Image.init()
    format = Image.EXTENSION.get(path.suffix.lower(), "PNG")
    write_file(path, lambda aside: image.save(aside, format=format, **options))
