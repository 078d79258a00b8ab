"""A fault of a set: one thing to tell, whether it is met by the check or in reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import UnidentifiedImageError

from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.data.voc_paths import AUGMENTED_MASKS, VOC_FOLDER
from unetdiff.errors import UserError


@dataclass(frozen=True)
class Issue:
    """One fault of a set."""

    file: str
    """The file that has it; with its line or row where it is a table."""
    what: str
    """What is wrong."""
    value: str
    """The value found."""
    suggestion: str
    """What to do."""

    def __str__(self) -> str:
        return f"{self.file}: {self.what} ({self.value}); {self.suggestion}"


class BadFile(UserError):
    """A `Problem` met in reading. Its constructor takes one text: so it comes through loader processes."""

    issue: Issue | None = None

    @classmethod
    def from_issue(cls, issue: Issue) -> BadFile:
        error = cls(str(issue))
        error.issue = issue
        return error


def raise_first_issue(issues: Sequence[Issue]) -> None:
    """Raise BadFile that tells the first of some faults and how many more there are; nothing for none."""
    if issues:
        more = f" ({len(issues) - 1} more: see `unetdiff data check`)" if len(issues) > 1 else ""
        error = BadFile(f"{issues[0]}{more}")
        error.issue = issues[0]
        raise error


def value_issue(path: Path, wrong: list[int], num_classes: int) -> Issue:
    """What to tell of a mask with values beyond the classes."""
    if len(wrong) > 20:
        fix = "it looks like a grey or antialiased mask: threshold it to class numbers"
    else:
        fix = "map them to a class or to 255, or correct classes.txt / data.num_classes"
    return Issue(str(path), f"mask values outside 0..{num_classes - 1} and {IGNORE_INDEX} (void)", listed(wrong), fix)


def size_issue(image: Path, mask: Path, image_size: tuple[int, ...], mask_size: tuple[int, ...]) -> Issue:
    """What to tell of a mask whose (height, width) is not its image's."""
    if tuple(mask_size) == tuple(image_size[::-1]):
        fix = "turn one of them (images are read upright, by their EXIF orientation)"
    else:
        fix = "resize the mask with nearest neighbour, or export it again"
    found = f"mask {mask_size[1]}x{mask_size[0]}, image {image_size[1]}x{image_size[0]}"
    return Issue(str(mask), f"the mask has not the size of its image {image.name}", found, fix)


def unreadable(path: Path, error: Exception) -> Issue:
    """What to tell of a file that could not be read."""
    leave = f"or take '{path.stem}' out of the split"
    if isinstance(error, FileNotFoundError):
        others = sorted(p.name for p in path.parent.glob(f"{_escaped(path.stem)}.*"))
        found = f"there is {', '.join(others)}" if others else "missing"
        return Issue(str(path), "no such file", found, _rebuilt(path) or f"put it there, {leave}")
    rebuilt = _rebuilt(path)
    if rebuilt is not None:
        rebuilt = f"delete it and {rebuilt}"
    if isinstance(error, UnidentifiedImageError):
        return Issue(str(path), "not an image", f"{path.stat().st_size} bytes", rebuilt or f"replace it, {leave}")
    return Issue(str(path), "cannot be read", str(error), rebuilt or f"fetch it again, {leave}")


def listed(values: list[int]) -> str:
    """A few values in words: "21, 37, 40 and 12 more"."""
    shown = ", ".join(str(value) for value in values[:3])
    return shown if len(values) <= 3 else f"{shown} and {len(values) - 3} more"


def _rebuilt(path: Path) -> str | None:
    """The command that writes a missing mask of SBD; None for any other file."""
    if path.parent.parts[-3:] != (*VOC_FOLDER.parts, AUGMENTED_MASKS):
        return None
    return f"run `unetdiff data download sbd --root {path.absolute().parents[3]}`, which writes what is missing"


def _escaped(stem: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in stem)
