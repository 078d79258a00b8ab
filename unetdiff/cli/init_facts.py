"""What `unetdiff init` says about a dataset: images, sizes, bit depth, classes and their balance, splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.capabilities import WITH_VAL_FRACTION
from unetdiff.data.config import DataConfig
from unetdiff.data.discovery.found import Found, add_val_fraction
from unetdiff.data.image_format import resolve_image_format
from unetdiff.data.masks.dataset import MaskedImages
from unetdiff.data.raw_images import read_info
from unetdiff.data.stats import SplitCounts, count
from unetdiff.data.subset import Subset
from unetdiff.errors import FileError, UserError, printable

MAX_IMAGES = 1000
"""Images and masks that are read; of more, as many at equal distances."""
RARE = 0.3
"""Classes in a smaller fraction of the images are drawn more often, as in LVIS's repeat factor sampling."""
MAX_SHOWN = 6


@dataclass
class Facts:
    """A dataset in numbers and words."""

    found: Found
    num_train: int
    num_val: int
    sizes: list[tuple[int, int]]
    """(height, width) of the images that were read."""
    kinds: Counter[str]
    """8-bit gray, color of more than 8 bits, ..."""
    formats: Counter[str]
    example: Path | None = None
    """An image for a first prediction: of the validation split, where there is one."""
    image_range: list[float] | None = None
    """Of images of more than 8 bits: the values that become black and white."""
    classes: list[str] = field(default_factory=list)
    counts: SplitCounts | None = None
    counted: int = 0
    """Training masks that were counted."""
    problem: str = ""
    """The first reason why masks could not be counted."""

    @property
    def median_size(self) -> tuple[int, int]:
        """(height, width)."""
        heights, widths = zip(*self.sizes, strict=True)
        return int(np.median(heights)), int(np.median(widths))

    @property
    def one_size(self) -> bool:
        return len(set(self.sizes)) == 1

    @property
    def images(self) -> str:
        height, width = self.median_size
        size = (
            f"{width} x {height}"
            if self.one_size
            else (
                f"{min(w for _, w in self.sizes)} x {min(h for h, _ in self.sizes)} to "
                f"{max(w for _, w in self.sizes)} x {max(h for h, _ in self.sizes)} (median {width} x {height})"
            )
        )
        kinds = ", ".join(kind for kind, _ in self.kinds.most_common())
        limits = "" if self.image_range is None else f" ({self.range_text})"
        return f"{self.num_train + self.num_val}, {size}, {kinds}{limits}, {'/'.join(self.formats)}"

    @property
    def range_text(self) -> str:
        """The values that become black and white, "100 to 2898", of each channel."""
        limits = self.image_range or []
        pairs = zip(limits[::2], limits[1::2], strict=True)
        return "; ".join(f"{low:g} to {high:g}" for low, high in pairs) + " become black to white"

    @property
    def fractions(self) -> list[float]:
        """Of the pixels of each class."""
        assert self.counts is not None
        return (self.counts.pixels / max(1, self.counts.pixels.sum())).tolist()

    @property
    def class_line(self) -> str:
        if self.counts is None:
            return f"{len(self.classes)}: {', '.join(map(printable, self.classes[:MAX_SHOWN]))}"
        parts = [f"{printable(name)} {part:.1%}" for name, part in zip(self.classes, self.fractions, strict=True)]
        more = f" and {len(parts) - MAX_SHOWN} more" if len(parts) > MAX_SHOWN else ""
        return f"{len(parts)}: {', '.join(parts[:MAX_SHOWN])}{more}"

    @property
    def imbalance(self) -> str:
        if self.counts is None or not self.counts.pixels.any():
            return ""
        fractions = self.fractions
        rarest, most = int(np.argmin(fractions)), int(np.argmax(fractions))
        name = printable(self.classes[rarest])
        if fractions[rarest] == 0:
            return f"no pixel of {name} in the masks that were read"
        ratio = fractions[most] / fractions[rarest]
        if ratio < 1.5:
            return "all classes have about as many pixels"
        return f"{printable(self.classes[most])} has {ratio:.0f} times the pixels of {name}"

    @property
    def image_fraction(self) -> float:
        """Of the training images that contain the rarest class."""
        assert self.counts is not None
        present = self.counts.images[self.counts.images > 0]
        return float(present.min()) / max(1, self.counted) if present.size else 0.0

    @property
    def ratio(self) -> float:
        """Of the largest class's pixels to the smallest one's."""
        present = [part for part in self.fractions if part > 0] if self.counts is not None else [1.0]
        return max(present, default=1.0) / min(present, default=1.0)

    @property
    def splits(self) -> str:
        reason = self.found.reasons.get("val_fraction")
        return f"{self.num_train} for training, {self.num_val} for validation" + (f" ({reason})" if reason else "")


def gather(found: Found) -> Facts:
    """Read headers of images, and count masks.

    Raises:
        UserError: the dataset cannot be read with the keys that were found.
    """
    config = data_config(found)
    masks = found.task == "segmentation"
    train, val = _splits(config, masks)
    if _is_held_out(train, val) and config.name in WITH_VAL_FRACTION and "val_fraction" not in found.keys:
        add_val_fraction(found, len(train) + len(val))
        train, val = _splits(data_config(found), masks)
    limits = resolve_image_format(data_config(found), masks).image_range
    facts = Facts(found, len(train), len(val), *_headers(train), image_range=limits)
    source = (val if len(val) else train).image_source(0)
    facts.example = source if isinstance(source, Path) else None
    facts.classes = train.classes if masks else train.labels
    if masks:
        part = Subset(train, range(0, len(train), max(1, len(train) // MAX_IMAGES)))
        facts.counted = len(part)
        try:
            facts.counts = count(part, progress=True, description="masks")
        except UserError as error:
            facts.problem = str(error)
    return facts


def _splits(config: DataConfig, masks: bool) -> tuple[ImageDataset, ImageDataset]:
    return build_dataset(config, "train", segmentation=masks), build_dataset(config, "val", segmentation=masks)


def _is_held_out(train: ImageDataset, val: ImageDataset) -> bool:
    """Whether the validation split is a fraction of what the training split is listed with."""
    both = isinstance(train, MaskedImages) and isinstance(val, MaskedImages)
    return both and train.reader.place == val.reader.place  # type: ignore[attr-defined]


def data_config(found: Found) -> DataConfig:
    """The `data:` section of what was found; a denoiser's images need a size."""
    size = None if found.task == "segmentation" else [64, 64]
    return DataConfig(root=str(found.root), size=size, **found.keys)


def _headers(data: ImageDataset) -> tuple[list[tuple[int, int]], Counter[str], Counter[str]]:
    """Sizes, kinds and formats of images, from the headers of their files."""
    sizes: list[tuple[int, int]] = []
    kinds: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for index in range(0, len(data), max(1, len(data) // MAX_IMAGES)):
        try:
            source = data.image_source(index)
            if source is None:
                continue
            info = read_info(source, data.sample_name(index))
        except FileError:
            continue
        sizes.append(info.size)
        color = {1: "gray", 3: "color"}.get(info.channels, f"{info.channels} channels")
        alpha = " with alpha" if info.has_alpha else ""
        kinds[f"{color} of more than 8 bits{alpha}" if info.is_deep else f"8-bit {color}{alpha}"] += 1
        suffix = source.suffix.lower().lstrip(".") if isinstance(source, Path) else ""
        formats[{"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "": "table"}.get(suffix, suffix.upper())] += 1
    if not sizes:
        raise FileError.of("the dataset", "none of the images can be read", "Check the files.")
    return sizes, kinds, formats
