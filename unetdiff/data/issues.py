"""Issues of a dataset's files, as reported by `unetdiff data check` and raised while reading."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unetdiff.data.masks.voc_paths import AUGMENTED_MASKS, VOC_FOLDER
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.errors import FileError, printable
from unetdiff.files.images import SUFFIXES


@dataclass(frozen=True)
class Issue:
    """One issue of one file."""

    file: str
    """The file; with its line or row if it is a table."""
    message: str
    """The issue."""
    value: str
    """The offending value."""
    remedy: str
    """What to do, as a sentence."""

    def __str__(self) -> str:
        """One line; control characters of names and values are shown as `\\x1b`."""
        value = f" ({self.value})" if self.value else ""
        return printable(f"{self.file}: {self.message}{value}. {self.remedy}")


class BadFile(FileError):
    """An issue met while reading. Constructed from its text alone, so that it can be pickled by loader workers."""

    issue: Issue | None = None

    @classmethod
    def from_issue(cls, issue: Issue) -> BadFile:
        error = cls(str(issue))
        error.path, error.reason, error.issue = issue.file, issue.message, issue
        return error


def raise_first_issue(issues: Sequence[Issue]) -> None:
    """Raise BadFile with the first issue and the number of further ones; return if there are none."""
    if issues:
        more = f" {len(issues) - 1} more: run `unetdiff data check`." if len(issues) > 1 else ""
        error = BadFile(f"{issues[0]}{more}")
        error.issue = issues[0]
        raise error


def issue_of(error: BadFile) -> Issue:
    """The issue of an error that was made of one."""
    assert error.issue is not None
    return error.issue


def value_issue(path: Path | str, values: list[int], num_classes: int) -> Issue:
    """A mask with values that are not classes."""
    if len(values) > 20:
        remedy = "This looks like a gray or antialiased mask: convert it to class indices."
    else:
        remedy = "Map them to a class or to 255, or correct classes.txt or data.num_classes."
    message = f"mask values outside 0..{num_classes - 1} and {IGNORE_INDEX} (ignore)"
    return Issue(str(path), message, first_values(values), remedy)


def size_issue(image: Path, mask: Path, image_size: tuple[int, ...], mask_size: tuple[int, ...]) -> Issue:
    """A mask whose (height, width) differs from its image's."""
    if tuple(mask_size) == tuple(image_size[::-1]):
        remedy = "Rotate one of them: images are read upright, by their EXIF orientation."
    else:
        remedy = "Resize the mask with nearest-neighbor interpolation, or export it again."
    sizes = f"mask {mask_size[1]}x{mask_size[0]}, image {image.name} {image_size[1]}x{image_size[0]}"
    return Issue(str(mask), "mask and image sizes differ", sizes, remedy)


def ambiguous_issue(files: Sequence[Path]) -> Issue:
    """Several files of one id, e.g. a.jpg and a.png."""
    names = ", ".join(path.name for path in files)
    return Issue(str(files[0]), "several files have this id", names, "Keep one of them.")


def unreadable_issue(path: Path, error: FileError) -> Issue:
    """A file that raised `error` when it was read."""
    remove = f"or remove '{path.stem}' from the split."
    rebuild = _rebuild_command(path)
    if not os.path.exists(path):
        similar = [name for name in _same_stem(path) if os.path.exists(path.with_name(name))]
        value = f"there is {', '.join(similar)}" if similar else "missing"
        remedy = f"Add it, {remove}" if rebuild is None else f"Run {rebuild}."
        return Issue(str(path), "file not found", value, remedy)
    if error.reason.startswith("must be an image"):
        message, value, replace = "not an image", f"{path.stat().st_size} bytes", f"Replace it, {remove}"
    else:
        message, value = _message_and_value(error.reason)
        first = "Fetch it again" if message.startswith("cannot") else "Replace it"
        replace = f"{first}, {remove}"
    return Issue(str(path), message, value, replace if rebuild is None else f"Delete it and run {rebuild}.")


def row_issue(place: str, error: FileError) -> Issue:
    """An image in a row of a table that raised `error` when it was read."""
    if error.reason.startswith("must be an image"):
        return Issue(place, "image cannot be read", "not an image", "Remove the row.")
    message, value = _message_and_value(error.reason)
    return Issue(place, f"image {message}", value, "Remove the row.")


def first_values(values: Sequence[object]) -> str:
    """The first values, e.g. "21, 37, 40 and 12 more"."""
    shown = ", ".join(str(value) for value in values[:3])
    return shown if len(values) <= 3 else f"{shown} and {len(values) - 3} more"


def _message_and_value(reason: str) -> tuple[str, str]:
    """ "cannot be decoded (truncated)" as its two parts."""
    reason = reason.replace("cannot be decoded", "cannot be read", 1)
    match = re.fullmatch(r"(.*?) \((.*)\)", reason, re.DOTALL)
    return (match[1], match[2]) if match else (reason, "")


def _same_stem(path: Path) -> list[str]:
    """Names of images of the same stem (an existing file per id is cheaper to test than a folder to list)."""
    return [path.stem + suffix for lower in sorted(SUFFIXES) for suffix in (lower, lower.upper())]


def _rebuild_command(path: Path) -> str | None:
    """The command that writes a missing SBD mask; None for other files."""
    if path.parent.parts[-3:] != (*VOC_FOLDER.parts, AUGMENTED_MASKS):
        return None
    return f"`unetdiff data download sbd --root {path.absolute().parents[3]}`, which writes missing masks"
