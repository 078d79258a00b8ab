"""What the images of a dataset are, found while they are read: ranges beyond 8 bits, alpha, further pages, channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from unetdiff.data.decoding import RGB, bad_file, to_channels
from unetdiff.data.issues import Issue
from unetdiff.data.raw_images import ImageInfo, read_info, read_values
from unetdiff.errors import FileError
from unetdiff.files.images import is_whole_jpeg


class ImageSurvey:
    """Reads the images of a dataset. Used by several threads.

    Args:
        image_range: `data.image_range`.
        channels: `data.channels`.
        full: decode every image; else read the header and end of a JPEG only, and decode it if these look wrong.
    """

    def __init__(self, image_range: Sequence[float] | None, channels: int, full: bool) -> None:
        self.image_range, self.channels, self.full = image_range, channels, full
        self.images = 0
        self._lock = Lock()
        self._ranges: list[tuple[float, float, str]] = []  # least and largest value of more than 8 bits, name
        self._alpha: list[str] = []
        self._paged: list[str] = []
        self._gray = self._color = 0

    def image_size(self, source: Path | bytes, name: str = "") -> tuple[int, int]:
        """(height, width) of an image as `decode` returns it.

        Raises:
            BadFile: as of `decode`.
        """
        where = name or str(source)
        try:
            info = read_info(source, name)
            found = None
            if self.full or not (isinstance(source, Path) and is_whole_jpeg(source)):
                found = self._decode(source, name)
        except FileError as error:
            raise bad_file(source, name, error) from None
        except ValueError as error:
            problem = FileError.of(where, f"cannot be decoded ({error})")
            raise bad_file(source, name, problem) from None
        with self._lock:
            self._count(info, where)
            if found is not None:
                self._ranges.append((*found, where))
        return info.size

    def _decode(self, source: Path | bytes, name: str) -> tuple[float, float] | None:
        """Decode an image; the range of its values if they have more than 8 bits."""
        raw = read_values(source, name)
        to_channels(raw, self.channels, self.image_range)
        values = raw.values
        if values.dtype.itemsize == 1 or not values.size:
            return None
        finite = values[values == values] if values.dtype.kind == "f" else values  # without nan
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)

    def _count(self, info: ImageInfo, where: str) -> None:
        self.images += 1
        if info.has_alpha:
            self._alpha.append(where)
        if info.pages > 1:
            self._paged.append(where)
        self._gray += info.channels == 1
        self._color += info.channels == RGB

    def issues(self) -> list[Issue]:
        """What the ranges of all images say: whether they are outside of `data.image_range`."""
        if not self._ranges or self.image_range is None:
            return []
        low, high = min(low for low, *_ in self._ranges), max(high for _, high, _ in self._ranges)
        if low <= max(self.image_range[1::2]) and high >= min(self.image_range[::2]):
            return []
        limits = ", ".join(f"{limit:g}" for limit in self.image_range)
        found = f"{len(self._ranges)} image(s) with values {low:g} to {high:g}"
        name = min(name for *_, name in self._ranges)
        return [Issue(name, f"all values are outside of data.image_range=[{limits}]", found, "Correct it.")]

    def notes(self) -> list[str]:
        """What is done with the images, a line each."""
        notes = []
        if self._ranges and self.image_range is not None:
            limits = ", ".join(f"{limit:g}" for limit in self.image_range)
            notes.append(f"{len(self._ranges)} image(s) of more than 8 bits: data.image_range=[{limits}] is 0..255")
        if self._alpha and self.channels in (1, RGB):
            remedy = "data.channels=4 reads alpha as a fourth channel"
            notes.append(f"{len(self._alpha)} image(s) with alpha, e.g. {min(self._alpha)}: over white; {remedy}")
        if self._paged:
            notes.append(f"{len(self._paged)} file(s) of several images, e.g. {min(self._paged)}: the first is read")
        if self._gray and self.channels == RGB:
            notes.append(f"{self._gray} gray image(s): read as RGB")
        if self._color and self.channels == 1:
            notes.append(f"{self._color} RGB image(s): read as gray")
        return notes
