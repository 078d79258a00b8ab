"""Image classification datasets: folders, and torchvision's Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
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
from unetdiff.data.bucket_sizes import Size
from unetdiff.data.buckets import Buckets
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import RGB, decode, read_sizes
from unetdiff.data.download import Archive, fetch
from unetdiff.data.idx import read_idx
from unetdiff.data.name_lists import distinct_names
from unetdiff.data.roots import dataset_root, split_folders
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import Transform, checked_size, cover, resize_to_cover
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files.folders import entries, files_in
from unetdiff.files.images import SUFFIXES
from unetdiff.files.writing import sha256_of

MAX_CACHE_BYTES = 1 << 30
"""Decoded images that a dataset caches, divided among the loader's workers."""
VAL_FRACTION, MAX_VAL_IMAGES = 0.1, 2000


class ImageArray(ImageDataset):
    """Images in memory as uint8, (N, C, H, W), C = 1 (returned as gray RGB) or 3; resized to `size` at construction."""

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
        shape = checked_size("data.size", size)
        if shape is not None:
            images = torch.cat([cover(chunk, shape) for chunk in images.split(1000)])
        self.images = images
        self.targets = targets
        self.title = title
        self.transform: Transform = transform

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
        return {"image": image, **self.without_image(index)}

    def without_image(self, key: int | SampleKey) -> dict[str, Any]:
        index = self.sample_index(key)
        target = self.targets[index]
        return {"name": self.sample_name(index), "label": target, "labels": (target,)}


class ImageSource(ImageDataset):
    """Images decoded on first access and cached, at their size, up to `MAX_CACHE_BYTES`.

    Args:
        open_image: the RGB image of an index, uint8 (3, H, W).
        targets: class of each image; None: no classes.
        labels: names of the classes.
        titles: name of each image.
        captions: caption of each image; None: no captions. At least one of targets and captions is given.
        buckets: sizes of the images in training, instead of `size`.
        source: the file of an index, or its content.
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
        buckets: Buckets | None = None,
        *,
        source: Callable[[int], Path | bytes],
    ) -> None:
        self.buckets = buckets
        self.classes, self.palette, self.labels = [], empty_palette(), labels
        self.open_image, self.source = open_image, source
        self.targets = targets
        self.captions = captions
        self.length = len((captions or []) if targets is None else targets)
        self.titles = titles
        self.transform: Transform = transform
        self.size = checked_size("data.size", size)
        self._cache: dict[tuple[int, bool], Tensor] = {}  # by index, and whether as in training
        self._bytes = 0

    def __len__(self) -> int:
        return self.length

    def sample_name(self, index: int) -> str:
        return self.titles(index)

    def caption(self, index: int) -> str:
        if self.captions is None:
            raise UserError(
                f"{self.sample_name(index)}: dataset has no captions. For parquet, set data.caption_column."
            )
        return self.captions[self.sample_index(index)]

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        index, training = self.sample_index(key), isinstance(key, SampleKey)
        size = self.buckets.size_of(index) if training and self.buckets is not None else self.size
        image, _ = self.transform(self._image(index, size, training), None, key, size)
        return {"image": image, **self.without_image(index)}

    def without_image(self, key: int | SampleKey) -> dict[str, Any]:
        index = self.sample_index(key)
        item: dict[str, Any] = {"name": self.sample_name(index)}
        if self.targets is not None:
            item["label"] = self.targets[index]
            item["labels"] = (self.targets[index],)
        if self.captions is not None:
            item["caption"] = self.captions[index]
        return item

    def release(self) -> None:
        self._cache.clear()
        self._bytes = 0

    def image_source(self, index: int) -> Path | bytes | None:
        return self.source(self.sample_index(index))

    def image_hash(self, index: int) -> str:
        source = self.source(self.sample_index(index))
        name = sha256_of(source) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()
        return name if self.buckets is None else f"{name}-{'x'.join(map(str, self.buckets.size_of(index)))}"

    def _image(self, index: int, size: tuple[int, int] | None, training: bool) -> Tensor:
        whole = training and self.transform.train.random_crop  # cropped by the transform
        cached = (index, training and (whole or self.buckets is not None))
        if cached in self._cache:
            return self._cache[cached]
        image = self.open_image(index)
        if size is not None:
            image = resize_to_cover(image, size) if whole else cover(image, size)
        worker = get_worker_info()
        if self._bytes + image.numel() <= MAX_CACHE_BYTES // (worker.num_workers if worker else 1):
            self._cache[cached] = image
            self._bytes += image.numel()
        return image


def holdout_indices(count: int, split: str, place: Path) -> NDArray[np.int64]:
    """Ascending indices of "train" or "val" for a dataset with a single split.

    val is a tenth of the images, at most 2,000, drawn with a fixed seed; train is the rest.

    Raises:
        FileError: fewer than two images; it names `place`, the folder or file of the images.
    """
    if count < 2:
        raise FileError.of(place, f"{count} image(s) cannot be split into train and val", "Give at least 2.")
    num_val = max(1, min(MAX_VAL_IMAGES, int(count * VAL_FRACTION)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    return np.sort(order[:num_val] if split == "val" else order[num_val:])


def image_folder(config: DataConfig, role: str, transform: Transform) -> ImageSource:
    """One folder per class, in `root/SPLIT/CLASS/` or, for a single split, in `root/CLASS/`.

    Without class folders all images are of one class, named after the root. With `root/TRAIN_SPLIT` but no
    `root/VAL_SPLIT` (nor, for "val", `root/validation` or `root/valid`), or with neither, the validation split is held
    out (see `holdout_indices`).
    """
    files, labels, chosen = folder_files(config, role)

    def open_image(i: int) -> Tensor:
        return decode(files[chosen[i]][0], image_range=config.image_range, channels=config.channels or RGB)

    return ImageSource(
        open_image,
        [files[i][1] for i in chosen],
        labels,
        lambda i: str(files[chosen[i]][0]),
        transform,
        config.size,
        buckets=training_buckets([files[i][0] for i in chosen], config, role),
        source=lambda i: files[chosen[i]][0],
    )


def training_buckets(
    images: Sequence[Any], config: DataConfig, role: str, read: Callable[[Sequence[Any]], list[Size]] = read_sizes
) -> Buckets | None:
    """The resolution buckets of a training split; None: all images have `data.size`.

    read: the sizes (height, width) of the images, which are files by default.
    """
    if role != "train" or config.bucket_step is None or config.size is None:
        return None
    return Buckets.of(read(images), config.size, config.bucket_step)


def folder_files(config: DataConfig, role: str) -> tuple[list[tuple[Path, int]], list[str], list[int]]:
    """All (file, class) of a split's folder, the class names, and the indices of the split's files."""
    root = dataset_root(config)
    train, val = split_folders(config)
    has_train = os.path.isdir(train)
    both = has_train and os.path.isdir(val)
    folder = (val if role == "val" else train) if both else (train if has_train else root)
    name = root.resolve().name
    files, labels = _listing(folder, name)
    if folder == root:
        _refuse_splits(folder, files)
    if not both:
        return files, labels, holdout_indices(len(files), role, folder).tolist()
    if train != val:
        other = _listing(train if role == "val" else val, name)[1]
        if other != labels:
            different = sorted(set(other) ^ set(labels))
            raise UserError(
                f"{root}: class folders of {train.name} and {val.name} differ ({', '.join(different[:5])}). "
                f"Make them the same, or remove {val.name} to hold out a validation split."
            )
    return files, labels, list(range(len(files)))


def _listing(folder: Path, name: str) -> tuple[list[tuple[Path, int]], list[str]]:
    """(file, class) of a folder's images and the class names; without class folders, all are of the class `name`."""
    inside = entries(folder)
    classes = [path for path in inside if path.is_dir()]
    names = distinct_names([path.name for path in classes], [str(path) for path in classes])
    if not classes:
        images = [path for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]
        if images:
            return [(path, 0) for path in images], distinct_names([name], [str(folder)])
        raise FileError.of(folder, "no images found", "Give a folder with one folder of images per class.")
    files = []
    for number, path in enumerate(classes):
        found = files_in(path, SUFFIXES, recursive=True)
        if not found:
            raise FileError.of(path, "no images found", "Add some, or remove the folder.")
        found.sort(key=lambda file: (str(file.parent), file.name))  # the order of torchvision's ImageFolder
        files += [(file, number) for file in found]
    return files, names


def _refuse_splits(folder: Path, files: list[tuple[Path, int]]) -> None:
    """Raise a UserError for folders that contain several folders of images, as splits do."""
    inside = {path.relative_to(folder).parts[:-1][:2] for path, _ in files}  # (class,) or (class, what is in it)
    first = sorted({parts[0] for parts in inside if parts})
    if all(len(parts) == 2 for parts in inside) and len(inside) > len(first):
        raise UserError(
            f"{folder}: {', '.join(first[:5])} contain folders instead of images. Name the splits with "
            "data.train_split and data.val_split, or give a data.root with one folder per class."
        )


def fashion_mnist(config: DataConfig, role: str, transform: Transform) -> ImageArray:
    """Fashion-MNIST, 28x28 gray, 10 classes; train is its 60,000 training images, val its 10,000 test images.

    `root` holds the four idx.gz files, or torchvision's `FashionMNIST/raw` (downloaded with `data.download`).
    """
    root = dataset_root(config)
    stem = "t10k" if role == "val" else "train"
    names = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
    raw = root / "FashionMNIST" / "raw"
    if config.download:
        md5s = dict(tv.FashionMNIST.resources)
        for name in names:
            if not any(os.path.isfile(path) for path in _idx_paths(root, name)):
                file = f"{name}.gz"
                fetch(Archive(tv.FashionMNIST.mirrors[0] + file, file, md5s[file]), raw)
    found = [[path for path in _idx_paths(root, name) if os.path.isfile(path)] for name in names]
    if not all(found):
        constraint = f"a folder with {names[0]}.gz and {names[1]}.gz, or FashionMNIST/raw"
        raise config_error("data.root", config.root, constraint, "Set data.download=true.")
    images, targets = read_idx(found[0][0], 3), read_idx(found[1][0], 1)
    labels = list(tv.FashionMNIST.classes)
    if len(images) != len(targets) or not len(images) or int(targets.max()) >= len(labels):
        reason = f"must have a class in 0..{len(labels) - 1} for each of {len(images)} images"
        raise FileError.of(found[1][0], reason, "Download both again.")
    pixels = rearrange(images, "n h w -> n 1 h w")
    return ImageArray(pixels, targets.tolist(), labels, f"fashion_mnist/{stem}", transform, config.size)


def _idx_paths(root: Path, name: str) -> list[Path]:
    """Where an idx file may be: as it is published, or where torchvision downloads and unpacks it."""
    raw = root / "FashionMNIST" / "raw"
    return [root / f"{name}.gz", raw / name, raw / f"{name}.gz"]


def cifar10(config: DataConfig, role: str, transform: Transform) -> ImageArray:
    """CIFAR-10 from torchvision, 32x32: train is its 50,000 training images, val its 10,000 test images.

    Its files are pickles; torchvision compares the md5 of all of them with the published ones before it reads any.
    """
    root = dataset_root(config)
    try:
        source = tv.CIFAR10(str(root), train=role == "train", download=config.download)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"data.root={config.root}: must contain cifar-10-batches-py ({' '.join(str(error).split())}). Set "
            "data.download=true, or data.name=parquet for a parquet file."
        ) from error
    pixels = rearrange(torch.from_numpy(source.data), "n h w c -> n c h w").contiguous()
    title = "cifar10/" + ("test" if role == "val" else "train")
    return ImageArray(pixels, list(source.targets), list(source.classes), title, transform, config.size)
