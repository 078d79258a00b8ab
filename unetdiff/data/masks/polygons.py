"""A reader of shapes: masks that are drawn from the annotations of each image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unetdiff.data.base import empty_palette
from unetdiff.data.config import DataConfig
from unetdiff.data.issues import BadFile, Issue
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.data.masks.reader import Indices, MaskReader
from unetdiff.data.masks.splits import Role, split_of
from unetdiff.data.name_lists import distinct_names
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.errors import FileError, config_error, did_you_mean

BACKGROUND = ("background", "_background_")
IGNORED = ("ignore", "__ignore__", "void")
"""Labels, in lower case, that are index 0 and 255."""
MAX_SIDE = 1 << 15

Region = NDArray[np.bool_]


@dataclass
class Annotated:
    """An image and its shapes."""

    name: str
    image: Path
    place: str
    """Where the annotations stand, for messages."""
    size: tuple[int, int] | None
    """(height, width) that the annotations were drawn at."""
    shapes: list[Any] = field(default_factory=list)
    """As the format stores them."""


class ShapeReader(MaskReader):
    """Images whose masks are drawn from shapes: later ones over earlier ones, everything else is background.

    Args:
        samples: the images of the split.
        index_of: class index of each label; labels without one are background.
        classes: names of the classes.
        place: where the split is listed.
        listing: issues of the annotations as a whole.
        masks: draw masks.
    """

    keeps = True

    def __init__(
        self,
        samples: Sequence[Annotated],
        index_of: dict[str, int],
        classes: list[str],
        place: str,
        listing: Sequence[Issue] = (),
        masks: bool = True,
    ) -> None:
        self.samples, self.index_of, self.place, self.listing = list(samples), index_of, place, list(listing)
        self.names = [sample.name for sample in samples]
        self.classes = classes if masks else []
        self.palette = voc_colormap(len(classes)) if masks else empty_palette()

    @abstractmethod
    def label(self, shape: Any) -> str:
        """The label of a shape."""

    @abstractmethod
    def region(self, shape: Any, size: tuple[int, int]) -> Region:
        """The pixels of a shape in an image of `size`, (H, W); ValueError with the reason where there are none."""

    def image(self, index: int) -> tuple[Path | bytes, str]:
        return self.samples[index].image, ""

    def mask_place(self, index: int) -> Path:
        return Path(self.samples[index].place)

    def issues(self) -> list[Issue]:
        return self.listing

    def mask(self, index: int) -> Indices:
        sample = self.samples[index]
        size = sample.size
        if size is None or not all(0 < side <= MAX_SIDE for side in size):
            raise _bad(sample, f"size of {sample.image.name} must be given", f"got {size}", "Export it again.")
        mask = np.zeros(size, np.uint8)
        for number, shape in enumerate(sample.shapes):
            label = self.label(shape)
            target = self.index_of.get(label, 0)
            try:
                mask[self.region(shape, size)] = target
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
                reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                what = f"shape {number} ({label}) of {sample.image.name} cannot be drawn"
                raise _bad(sample, what, " ".join(reason.split()), "Correct it, or remove it.") from None
        return mask


def _bad(sample: Annotated, message: str, value: str, remedy: str) -> BadFile:
    return BadFile.from_issue(Issue(sample.place, message, value, remedy))


def label_classes(labels: Iterable[str], config: DataConfig, place: Path) -> tuple[dict[str, int], list[str]]:
    """The index of each label and the names of the classes: background, then the labels in order (as `data.class_names`
    has them, where it is set; other labels are background then).

    Raises:
        UserError: names that no annotation has, or no labels at all.
    """
    found = list(dict.fromkeys(labels))
    own = [label for label in found if label.lower() not in (*BACKGROUND, *IGNORED)]
    names = config.class_names or [BACKGROUND[0], *own]
    if config.class_names is not None:
        if names[0].lower() not in BACKGROUND:
            constraint = f"a list that begins with {BACKGROUND[0]}, the pixels without a shape"
            raise config_error("data.class_names", names, constraint)
        unknown = [name for name in names[1:] if name not in own]
        if unknown:
            constraint = f"labels of the annotations (no {unknown[0]})"
            raise config_error("data.class_names", names, constraint, did_you_mean(unknown[0], own))
    if not 2 <= len(names) < IGNORE_INDEX:
        raise FileError.of(place, f"must have labels of 1 to {IGNORE_INDEX - 2} classes (got {len(names) - 1})")
    distinct_names(names, [str(place)] * len(names))
    index_of = {name: i for i, name in enumerate(names)}
    return index_of | {label: IGNORE_INDEX for label in found if label.lower() in IGNORED}, list(names)


def split_samples(
    samples: Sequence[Annotated], config: DataConfig, root: Path, role: Role
) -> tuple[list[Annotated], str]:
    """The samples of a split of annotations that hold all splits, and where the split is listed."""
    if not samples:
        raise FileError.of(root, "no annotated images found", "Correct data.root or data.annotations.")
    split = split_of([one.name for one in samples], [one.image for one in samples], root, config, role)
    return [samples[i] for i in split.indices], split.place


def find_image(name: str, folders: Sequence[Path]) -> Path:
    """The image that annotations name, in the first of some folders that has it: by its path, else by its file name; in
    the first folder if none has it."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    choices = [folder / text for folder in folders for text in (path.as_posix().lstrip("/"), path.name)]
    return next((choice for choice in choices if choice.is_file()), choices[0])


def polygon(points: Sequence[Sequence[float]], size: tuple[int, int]) -> Region:
    """The pixels of a polygon of (x, y), border included; ValueError for fewer than three points."""
    if len(points) < 3:
        raise ValueError(f"a polygon needs three points (got {len(points)})")
    return _drawn(size, lambda draw: draw.polygon([(float(x), float(y)) for x, y in points], outline=1, fill=1))


def box(first: Sequence[float], second: Sequence[float], size: tuple[int, int], ellipse: bool = False) -> Region:
    """The pixels of a rectangle, or of the ellipse in it, given by two corners (x, y)."""
    low = min(first[0], second[0]), min(first[1], second[1])
    high = max(first[0], second[0]), max(first[1], second[1])
    shape = (
        (lambda draw: draw.ellipse([low, high], fill=1))
        if ellipse
        else (lambda draw: draw.rectangle([low, high], fill=1))
    )
    return _drawn(size, shape)


def _drawn(size: tuple[int, int], draw: Any) -> Region:
    canvas = Image.new("1", (size[1], size[0]))
    draw(ImageDraw.Draw(canvas))
    return np.array(canvas, bool)
