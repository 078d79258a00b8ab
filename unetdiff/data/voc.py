"""Images and masks in PASCAL VOC's layout: VOC itself through torchvision, and any folder made like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets import VOCSegmentation

from unetdiff.data.base import ImageDataset, classes_present, empty_palette
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import decode
from unetdiff.data.download import download_voc
from unetdiff.data.issues import BadFile, Issue, size_issue, unreadable, value_issue
from unetdiff.data.roots import dataset_root
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import IGNORE_INDEX, Transform
from unetdiff.data.voc_paths import AUGMENTED_MASKS, AUGMENTED_SPLIT, IMAGES, MASKS, SPLITS, VOC_FOLDER, VOC_SPLITS
from unetdiff.errors import UserError

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def voc_colormap(count: int = 256) -> NDArray[np.uint8]:
    """VOC's colours of the values 0..count-1, (count, 3).

    Bits of the value are dealt in turn to red, green and blue, high bits first (VOC development kit,
    VOClabelcolormap).
    """
    value = np.arange(count)
    colors = np.zeros((count, 3), np.uint8)
    for i in range(8):
        for channel in range(3):
            colors[:, channel] |= (((value >> (3 * i + channel)) & 1) << (7 - i)).astype(np.uint8)
    return colors


@dataclass(frozen=True)
class Pair:
    """One line of a split: where its image and its mask lie (whether or not they are there)."""

    name: str
    image: Path
    mask: Path


class VOCFolder(ImageDataset):
    """A folder with `JPEGImages/ID.jpg`, `SegmentationClass/ID.png` and `ImageSets/Segmentation/SPLIT.txt`.

    Class names are the lines of `classes.txt` (value 0 first); without it `num_classes` says how many there
    are. The palette is that of the first mask with one, else VOC's colours. Files are read when asked for.

    Args:
        root: the folder.
        split: name of the list in `ImageSets/Segmentation`.
        num_classes: number of classes with background; None: as many as `classes.txt` has lines.
        segmentation: give masks, and the classes in them as "labels"; without, items are images alone.
        transform: resizing and augmentation.
        pairs, classes: given where the layout has been read already (VOC itself).

    Raises:
        UserError: no such folder or split, an empty split, classes unknown or contradictory. On reading a
        sample: a
            missing or truncated file, a mask of another size, with colours or with a value that is no class.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        num_classes: int | None = None,
        segmentation: bool = True,
        transform: Transform | None = None,
        pairs: list[Pair] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.segmentation = segmentation
        self.transform = transform or Transform(None)
        self.pairs = pairs if pairs is not None else list_pairs(self.root, split)
        if segmentation:
            own = _first_palette(self.pairs)
            self.classes = classes or class_names(self.root, num_classes, own)
            count = len(self.classes)
            self.palette = own[:count] if own is not None and len(own) >= count else voc_colormap(count)
        else:
            self.classes, self.palette = [], empty_palette()
        self.labels = list(self.classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_name(self, index: int) -> str:
        return self.pairs[index].name

    def mask(self, index: int) -> Tensor:
        return read_mask(self.pairs[self.sample_index(index)].mask, len(self.classes))  # the image stays unread

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        pair = self.pairs[self.sample_index(key)]
        image = decode(pair.image)
        mask = None
        if self.segmentation:
            mask = read_mask(pair.mask, len(self.classes))
            if mask.shape != image.shape[1:]:
                raise BadFile.from_issue(size_issue(pair.image, pair.mask, image.shape[1:], mask.shape))
        image, mask = self.transform(image, mask, key)
        item: dict[str, Any] = {"image": image, "name": pair.name}
        if mask is not None:
            item["mask"] = mask
            item["labels"] = classes_present(mask)  # those that the crop shows
        return item


def voc_folder(config: DataConfig, split: str, masks: bool, transform: Transform) -> VOCFolder:
    """Any folder in VOC's layout."""
    return VOCFolder(dataset_root(config), split, config.num_classes, masks, transform)


def voc(config: DataConfig, split: str, masks: bool, transform: Transform) -> VOCFolder:
    """PASCAL VOC 2012: `root` holds (or will hold) `VOCdevkit/VOC2012`.

    VOC's own splits come through torchvision's `VOCSegmentation`; `trainaug` is there once it is built.
    """
    root = dataset_root(config)
    folder = root / VOC_FOLDER
    if config.num_classes not in (None, len(VOC_CLASSES)):
        raise UserError(f"data.num_classes={config.num_classes}: VOC has 21; leave the key out")
    if split not in (*VOC_SPLITS, AUGMENTED_SPLIT):
        own = ", ".join((*VOC_SPLITS, AUGMENTED_SPLIT))
        raise UserError(
            f"data.root={config.root}: VOC has the splits {own}, not '{split}' (for lists of your own: "
            f"data.name=voc_folder, data.root={folder}, data.num_classes=21)"
        )
    if split == AUGMENTED_SPLIT and not (folder / SPLITS / f"{split}.txt").is_file():
        raise UserError(
            f"data.root={config.root}: the split '{split}' is not built; run `unetdiff data download sbd --root {root}`"
        )
    if config.download and not folder.is_dir():
        download_voc(root)
    if split == AUGMENTED_SPLIT:
        pairs = list_pairs(folder, split)
    else:
        try:
            source = VOCSegmentation(root, year="2012", image_set=split)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data.root={config.root}: {str(error).strip()}; run `unetdiff data download voc --root {root}` or set "
                "data.download=true, or set data.root to the folder that holds VOCdevkit/VOC2012 "
                "(for VOC files in a folder of your own use data.name=voc_folder)"
            ) from error
        pairs = [
            Pair(Path(image).stem, Path(image), Path(mask))
            for image, mask in zip(source.images, source.masks, strict=True)
        ]
    return VOCFolder(folder, split, 21, masks, transform, pairs, list(VOC_CLASSES))


def list_pairs(root: Path, split: str) -> list[Pair]:
    """The lines of a split as image and mask, in the list's order. A missing file is left for the reader to
    name.

    A mask lies in `SegmentationClass`, or else in `SegmentationClassAug` where there is such a folder.
    """
    for folder in (IMAGES, MASKS, SPLITS):
        if not (root / folder).is_dir():
            raise UserError(f"data.root={root}: no folder {folder}; a VOC-style set has {IMAGES}, {MASKS}, {SPLITS}")
    ids = [line.strip() for line in split_file(root, split).read_text(encoding="utf-8").splitlines()]
    ids = [name for name in ids if name]
    if not ids:
        raise UserError(f"{split_file(root, split)} is empty: give one id a line")
    images = root / IMAGES
    # One listing of the folder instead of a question a file.
    by_stem = {
        Path(entry).stem: entry
        for entry in sorted(p.name for p in images.iterdir())
        if entry.lower().endswith(IMAGE_SUFFIXES)
    }
    own, added = root / MASKS, root / AUGMENTED_MASKS
    in_own = {path.name for path in own.iterdir()}
    in_added = {path.name for path in added.iterdir()} if added.is_dir() else set()

    def mask(file: str) -> Path:
        elsewhere = file not in in_own and (file in in_added or split == AUGMENTED_SPLIT)
        return (added if elsewhere else own) / file

    return [Pair(name, images / by_stem.get(name, f"{name}.jpg"), mask(f"{name}.png")) for name in ids]


def split_file(root: Path, split: str) -> Path:
    """Where the ids of a split are listed; a UserError names the splits there are."""
    path = root / SPLITS / f"{split}.txt"
    if not path.is_file():
        there = sorted(p.stem for p in (root / SPLITS).glob("*.txt"))
        raise UserError(f"{path}: no such split '{split}'; there are: {', '.join(there) or 'none'}")
    return path


def class_names(root: Path, num_classes: int | None, palette: NDArray[np.uint8] | None) -> list[str]:
    """Names of the mask values: `classes.txt`; VOC's own for 21 classes in VOC's colours; else "class 0" and
    so on.
    """
    path = root / "classes.txt"
    if path.is_file():
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if num_classes not in (None, len(names)):
            raise UserError(f"data.num_classes={num_classes}, but {path} names {len(names)}: make them agree")
    elif num_classes is None:
        raise UserError(f"{path} is missing: write one class name a line (value 0 first), or set data.num_classes")
    elif num_classes == 21 and (palette is None or np.array_equal(palette[:21], voc_colormap(21))):
        names = list(VOC_CLASSES)
    else:
        names = [f"class {i}" for i in range(num_classes)]
    if not 2 <= len(names) <= IGNORE_INDEX:
        raise UserError(
            f"{len(names)} classes in {root}: a mask has 2 to {IGNORE_INDEX} (values 0..254; {IGNORE_INDEX} is void)"
        )
    return names


def read_mask(path: Path, num_classes: int) -> Tensor:
    """A mask PNG as its indices, (H, W); BadFile on colours or a value that is neither class nor void."""
    values = read_indices(path)
    wrong = wrong_values(values, num_classes)
    if wrong:
        raise BadFile.from_issue(value_issue(path, wrong, num_classes))
    return torch.from_numpy(values)


def read_indices(path: Path) -> NDArray[np.uint8]:
    """The stored values of a one-channel PNG (palette, grey or one bit), (H, W), never its colours."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.array(image) if mode in ("P", "L", "1") else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile.from_issue(unreadable(path, error)) from error
    if values is None:
        what = "the mask does not store one 8-bit class number a pixel"
        fix = "map its colours to class numbers and save an indexed (palette) or 8-bit grey PNG"
        raise BadFile.from_issue(Issue(str(path), what, f"mode {mode}", fix))
    return values.astype(np.uint8)


def wrong_values(values: NDArray[np.uint8], num_classes: int) -> list[int]:
    """The values of a mask that are neither a class nor void, ascending."""
    there = np.flatnonzero(np.bincount(values.reshape(-1), minlength=256))
    return [int(value) for value in there if num_classes <= value != IGNORE_INDEX]


def _first_palette(pairs: list[Pair]) -> NDArray[np.uint8] | None:
    """Colours of the first mask stored with a palette; None if it has none (a grey ramp shows nothing: none
    too).
    """
    for pair in pairs[:20]:
        try:
            with Image.open(pair.mask) as image:
                colors = image.getpalette() if image.mode == "P" else None
        except (OSError, SyntaxError, ValueError):
            continue
        if colors is None:
            return None
        palette = np.array(colors, np.uint8).reshape(-1, 3)
        ramp = np.repeat(np.arange(len(palette), dtype=np.uint8)[:, None], 3, axis=1)
        return None if np.array_equal(palette, ramp) else palette
    return None
