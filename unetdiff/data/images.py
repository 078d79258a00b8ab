"""Images with a class: folders, torchvision's Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import datasets as tv

from unetdiff.data.base import ImageDataset, empty_palette
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import decode
from unetdiff.data.roots import dataset_root, split_folders
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import Transform, checked_size, cover
from unetdiff.errors import UserError

MEMORY = 1 << 30
"""Bytes of decoded images that a set may keep (shared out among the loader's workers)."""
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 2000


class ImageArray(ImageDataset):
    """Images held in memory as uint8, (N, C, H, W) with C = 1 (given out as grey RGB) or 3.

    They are brought to `size` once, at construction.
    """

    def __init__(
        self,
        images: Tensor,
        targets: list[int],
        labels: list[str],
        title: str,
        transform: Transform,
        size: list[int] | None,
    ) -> None:
        self.classes, self.palette, self.labels = [], empty_palette(), labels
        wanted = checked_size("data.size", size)
        self.images = images if wanted is None else torch.cat([cover(part, wanted) for part in images.split(1000)])
        self.targets = targets
        self.title = title
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def sample_name(self, index: int) -> str:
        return f"{self.title}/{index:06d}"

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        index = self.sample_index(key)
        image = self.images[index]
        if image.shape[0] == 1:
            image = repeat(image, "1 h w -> c h w", c=3)
        image, _ = self.transform(image, None, key)
        target = self.targets[index]
        return {"image": image, "name": self.sample_name(index), "label": target, "labels": (target,)}


class ImageSource(ImageDataset):
    """Images decoded when first asked for and then kept, at `size`, while they fit into `MEMORY`.

    Args:
        open_image: the RGB image of an index, uint8 (3, H, W).
        targets: class of each image; None: without classes.
        labels: names of the classes.
        titles: name of each image.
        captions: caption of each image; None: without captions. One of targets and captions is there.
    """

    def __init__(
        self,
        open_image: Callable[[int], Tensor],
        targets: list[int] | None,
        labels: list[str],
        titles: Callable[[int], str],
        transform: Transform,
        size: list[int] | None,
        captions: list[str] | None = None,
    ) -> None:
        self.classes, self.palette, self.labels = [], empty_palette(), labels
        self.open_image = open_image
        self.targets = targets
        self.captions = captions
        self.length = len((captions or []) if targets is None else targets)
        self.titles = titles
        self.transform = transform
        self.size = checked_size("data.size", size)
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return self.length

    def sample_name(self, index: int) -> str:
        return self.titles(index)

    def caption(self, index: int) -> str:
        if self.captions is None:
            raise UserError(
                f"{self.sample_name(index)}: this set has no captions; for parquet give data.caption_column"
            )
        return self.captions[self.sample_index(index)]

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        index = self.sample_index(key)
        image, _ = self.transform(self._image(index), None, key)
        item: dict[str, Any] = {"image": image, "name": self.sample_name(index)}
        if self.targets is not None:
            item["label"] = self.targets[index]
            item["labels"] = (self.targets[index],)
        if self.captions is not None:
            item["caption"] = self.captions[index]
        return item

    def _image(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        image = self.open_image(index)
        if self.size is not None:
            image = cover(image, self.size)
        worker = get_worker_info()
        if self._bytes + image.numel() <= MEMORY // (worker.num_workers if worker else 1):
            self._kept[index] = image
            self._bytes += image.numel()
        return image


def holdout_indices(count: int, split: str) -> NDArray[np.int64]:
    """Ascending indices of "train" or "val" where a set has one split only.

    Val is a tenth of the set, 2,000 images at most, drawn by a permutation with a fixed seed; train is the
    rest.
    """
    if count < 2:
        raise UserError(f"a set of {count} image(s) cannot be split into train and val: give at least 2")
    share = max(1, min(HELD_OUT_MOST, int(count * HELD_OUT_SHARE)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    return np.sort(order[:share] if split == "val" else order[share:])


def image_folder(config: DataConfig, role: str, transform: Transform) -> ImageSource:
    """One folder a class, in `root/SPLIT/CLASS/` or, where there is one split only, in `root/CLASS/`.

    Without folders of classes all images are of one class, which has the root's name. With `root/TRAIN_SPLIT`
    and no `root/VAL_SPLIT` (nor, for "val", `root/validation` or `root/valid`), or with neither, val is held out of
    the one set (see `holdout_indices`).
    """
    files, labels, chosen = folder_files(config, role)

    def open_image(i: int) -> Tensor:
        return decode(files[chosen[i]][0])

    return ImageSource(
        open_image,
        [files[i][1] for i in chosen],
        labels,
        lambda i: str(files[chosen[i]][0]),
        transform,
        config.size,
    )


def folder_files(config: DataConfig, role: str) -> tuple[list[tuple[Path, int]], list[str], list[int]]:
    """Every (file, class) of the folder that holds a split, the class names, and which of the files the split
    has.
    """
    root = dataset_root(config)
    train, val = split_folders(config)
    both = train.is_dir() and val.is_dir()
    folder = (val if role == "val" else train) if both else (train if train.is_dir() else root)
    name = root.resolve().name
    files, labels = _listing(folder, name)
    if folder == root:
        _refuse_splits(folder, files)
    if not both:
        return files, labels, holdout_indices(len(files), role).tolist()
    if train != val:
        other = _listing(train if role == "val" else val, name)[1]
        if other != labels:
            unlike = sorted(set(other) ^ set(labels))
            raise UserError(
                f"{root}: {train.name} and {val.name} have not the same class folders "
                f"({', '.join(unlike[:5])}); give both the same, or leave val out"
            )
    return files, labels, list(range(len(files)))


def _listing(folder: Path, name: str) -> tuple[list[tuple[Path, int]], list[str]]:
    """The images of a folder by class; without folders of classes, all are of the class `name`."""
    inside = sorted(folder.iterdir())
    if not any(path.is_dir() and not path.name.startswith(".") for path in inside):
        images = [path for path in inside if path.name.lower().endswith(tv.folder.IMG_EXTENSIONS)]
        if images:
            return [(path, 0) for path in images], [name]
    try:
        listing = tv.ImageFolder(folder)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: {error}; an image folder has one folder a class with images in it") from error
    return [(Path(path), target) for path, target in listing.samples], listing.classes


def _refuse_splits(folder: Path, files: list[tuple[Path, int]]) -> None:
    """Refuse folders that hold no images but several folders of them each, as splits do."""
    inside = {path.relative_to(folder).parts[:-1][:2] for path, _ in files}  # (class,) or (class, what is in it)
    first = sorted({parts[0] for parts in inside if parts})
    if all(len(parts) == 2 for parts in inside) and len(inside) > len(first):
        raise UserError(
            f"{folder}: {', '.join(first[:5])} hold folders and no images, as splits do; name them with "
            "data.train_split and data.val_split, or give a data.root with one folder a class"
        )


def fashion_mnist(config: DataConfig, role: str, transform: Transform) -> ImageArray:
    """Fashion-MNIST, 28x28 grey, 10 classes; train is its 60,000 training images, val its 10,000 test ones.

    `root` holds the four idx.gz files themselves, or torchvision's `FashionMNIST/raw` (downloaded where
    asked).
    """
    root = dataset_root(config)
    stem = "t10k" if role == "val" else "train"
    gz = [root / f"{stem}-images-idx3-ubyte.gz", root / f"{stem}-labels-idx1-ubyte.gz"]
    labels = list(tv.FashionMNIST.classes)
    if all(path.is_file() for path in gz):
        images, targets = (_read_idx(path) for path in gz)
    else:
        try:
            source = tv.FashionMNIST(str(root), train=role == "train", download=config.download)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data.root={config.root}: no {gz[0].name} and no FashionMNIST/raw there "
                f"({error}); set data.download=true"
            ) from error
        images, targets = source.data, source.targets
    pixels = rearrange(images, "n h w -> n 1 h w")
    return ImageArray(pixels, targets.tolist(), labels, f"fashion_mnist/{stem}", transform, config.size)


def cifar10(config: DataConfig, role: str, transform: Transform) -> ImageArray:
    """CIFAR-10 through torchvision, 32x32: train is its 50,000 training images, val its 10,000 test
    images.
    """
    root = dataset_root(config)
    try:
        source = tv.CIFAR10(str(root), train=role == "train", download=config.download)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"data.root={config.root}: no cifar-10-batches-py there ({error}); set data.download=true "
            "(for a parquet file use data.name=parquet)"
        ) from error
    pixels = rearrange(torch.from_numpy(source.data), "n h w c -> n c h w").contiguous()
    title = "cifar10/" + ("test" if role == "val" else "train")
    return ImageArray(pixels, list(source.targets), list(source.classes), title, transform, config.size)


def _read_idx(path: Path) -> Tensor:
    """A gzipped idx file of bytes (Y. LeCun's MNIST format): big-endian magic, one size a dimension, the
    bytes.
    """
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from error
    dimensions = data[3] if len(data) >= 4 else 0
    shape = np.frombuffer(data, ">i4", dimensions, 4).tolist() if len(data) >= 4 + 4 * dimensions else []
    if data[:3] != b"\x00\x00\x08" or len(data) != 4 + 4 * dimensions + math.prod(shape):
        raise UserError(f"{path}: not a whole idx file of bytes; fetch it again")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())
