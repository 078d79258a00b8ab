"""Latents of a dataset's images, encoded once and kept in memory or on disk.

An entry holds the moments of an image's posterior (`LatentCodec.encode_moments`) and, where training flips images,
those of its mirror image: an autoencoder is not equivariant, so the latents of the mirror image are not the mirrored
latents. Entries are float16, whose rounding (2^-11) is an eighth of bfloat16's, in which images are usually encoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.cached_latents import unflipped_key
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.codecs import BATCH, LatentCodec
from unetdiff.errors import UserError
from unetdiff.files.folders import files_in
from unetdiff.files.tensors import open_tensors, write_tensors
from unetdiff.files.writing import file_errors, write_into_directory

PART = 1024
"""Images in a file of the cache."""
BLOCK = 256
"""Entries in a block of memory."""
REMEDY = "Delete the file, and its images are encoded again."


def chunks(count: int) -> list[range]:
    """The images of a dataset in the groups in which they are encoded, whichever process does it."""
    return [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]


def encode(
    dataset: ImageDataset,
    groups: Sequence[Sequence[int]],
    views: int,
    codec: LatentCodec,
    device: torch.device,
    num_workers: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """(index, entry) of the images in these groups: moments of image and mirror image, (views, K, h, w) float16.

    Raises:
        UserError: latents beyond the range of float16, or a size that the autoencoder does not divide.
    """
    keys: list[list[SampleKey]] = [[unflipped_key(dataset, index) for index in group] for group in groups]
    loader = DataLoader(dataset, batch_sampler=keys, collate_fn=collate, num_workers=num_workers)  # type: ignore[arg-type]
    blocks = Blocks()
    for group, batch in zip(groups, loader, strict=True):
        images = batch["image"]
        stacks = [images] if isinstance(images, Tensor) else [image[None] for image in images]  # of several sizes
        entries: list[Tensor] = []
        for stack in stacks:
            pixels = to_model_range(stack.to(device))
            encoded = [codec.encode_moments(view) for view in (pixels, pixels.flip(-1))[:views]]
            entries += torch.stack(encoded, dim=1).half().cpu()  # (B, views, K, h, w)
        for index, name, entry in zip(group, batch["name"], entries, strict=True):
            if not entry.isfinite().all():
                raise UserError(
                    f"{name}: its latents must be within ±65504, the range of float16. Use latent.cache=none, or an "
                    "autoencoder whose scaling_factor brings them to unit variance."
                )
            yield index, blocks.keep(entry)


class Blocks:
    """Copies of small tensors in large blocks: between the buffers of an autoencoder, each of which is freed, small
    tensors that stay keep the allocator from giving back what lies around them."""

    def __init__(self) -> None:
        self.last: dict[torch.Size, tuple[Tensor, int]] = {}

    def keep(self, entry: Tensor) -> Tensor:
        """A copy of the tensor, in the last block of its shape."""
        block, used = self.last.get(entry.shape, (entry.new_empty(0), 0))
        if used == len(block):
            block, used = entry.new_empty(BLOCK, *entry.shape), 0
        self.last[entry.shape] = block, used + 1
        return block[used].copy_(entry)


class MemoryLatents:
    """(index, view) -> moments (K, h, w), of entries in memory."""

    def __init__(self, entries: Mapping[int, Tensor]) -> None:
        self.entries = [entries[index] for index in range(len(entries))]

    def __call__(self, index: int, view: int) -> Tensor:
        return self.entries[index][view]


class DiskLatents:
    """(index, view) -> moments (K, h, w), read from a folder of entries that are named by their images' hashes.

    Args:
        folder: of one autoencoder, resizing, precision and number of views.
        hashes: of the image of each index (`ImageDataset.image_hash`).
    """

    def __init__(self, folder: Path, hashes: Sequence[str]) -> None:
        self.folder, self.hashes = folder, hashes
        self.files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}

    def missing(self) -> list[int]:
        """Indices without an entry, one of several with the same image. Reads the list of entries again.

        Raises:
            FileError: a damaged file.
        """
        self.files = {}
        for path in files_in(self.folder, {".safetensors"}) if self.folder.is_dir() else []:
            with open_tensors(path, REMEDY) as file:
                self.files |= dict.fromkeys(file.keys(), path)
        first = {name: index for index, name in reversed(list(enumerate(self.hashes)))}
        return sorted(index for name, index in first.items() if name not in self.files)

    def write(self, entries: Iterator[tuple[int, Tensor]]) -> None:
        """Write entries, a file for every `PART`, which is whole or not there.

        Raises:
            FileError: e.g. a full disk.
        """
        part: dict[str, Tensor] = {}
        for index, entry in entries:
            part[self.hashes[index]] = entry
            if len(part) == PART:
                self._write_part(part)
                part = {}
        if part:
            self._write_part(part)

    def _write_part(self, part: Mapping[str, Tensor]) -> None:
        name = hashlib.sha256("".join(part).encode()).hexdigest()[:16]
        own = {key: entry.clone() for key, entry in part.items()}  # safetensors takes no views of one block
        with file_errors(self.folder, "Set another latent.cache_dir."):
            write_into_directory(self.folder, lambda aside: write_tensors(own, aside / f"{name}.safetensors"))

    def __call__(self, index: int, view: int) -> Tensor:
        name = self.hashes[index]
        path = self.files[name]
        if path not in self._open:  # in each loading process
            self._open[path] = open_tensors(path, REMEDY)
        return self._open[path].get_slice(name)[view]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}
