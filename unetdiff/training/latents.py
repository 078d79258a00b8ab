"""Whether a run encodes its images once (`latent.cache`), and the datasets that it trains on then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import needs_layout
from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset
from unetdiff.data.cached_latents import CachedLatents, num_views
from unetdiff.diffusion.autoencoders import fingerprint
from unetdiff.diffusion.codecs import LatentCodec
from unetdiff.diffusion.latent_cache import DiskLatents, MemoryLatents, chunks, encode
from unetdiff.files.folders import cache_folder
from unetdiff.training.tasks.base import Task

MAX_BYTES = 2 << 30
"""Latents that latent.cache=auto keeps in memory, 2 GiB."""
MIN_USES = 2
"""Times that a run must use each image, and each mirror image, for latent.cache=auto."""
NOT_OF_PIXELS = (
    "root", "download", "train_split", "val_split", "num_classes", "allow_binary_masks", "image_column", "label_column",
    "caption_column", "regularization_root", "regularization_prompt", "repeat_factor_threshold", "train_fraction",
    "train_fraction_seed", "label_fraction", "unlabelled_root", "augment",
)  # fmt: skip
"""Keys of `data:` that do not change an image of a given file."""


class LatentCaches:
    """Both splits with latents in the place of images, or as they are.

    Attributes:
        train, val: what batches are made of.
        note: for the log; None: images are encoded in each step, or not at all.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        train: ImageDataset,
        val: ImageDataset,
        steps: int,
        accelerator: Accelerator,
    ) -> None:
        self.train, self.val, self.note = train, val, None
        codec = codec_of(task)
        if codec is None:
            return
        mode = resolve_mode(config, codec, train, steps)
        if mode == "none":
            return
        self.config, self.codec, self.accelerator = config, codec, accelerator
        views = num_views(train) or 1
        folder = self._folder(train, views) if mode == "disk" else None
        self.train = self._cached(train, views, folder)
        if train.regularization is not None:
            self.train.regularization = self._cached(train.regularization, views, folder)
        if config.task == "diffusion":  # a segmentation head is evaluated on images of any size
            self.val = self._cached(val, 1, self._folder(val, 1) if mode == "disk" else None)
        mirrored = " and their mirror images" if views == 2 else ""
        where = "in memory" if folder is None else f"in {folder.parent}"
        validation = f" and {len(val):,} validation images" if self.val is not val else ""
        self.note = f"latents of {len(train):,} training images{mirrored}{validation} {where}"

    def _cached(self, dataset: ImageDataset, views: int, folder: Path | None) -> CachedLatents:
        accelerator = self.accelerator
        if folder is None:
            own = dict(self._encode(dataset, list(range(len(dataset))), views))
            if accelerator.num_processes > 1:
                own = dict(gather_object([(index, entry.clone()) for index, entry in own.items()]))  # not whole blocks
            return CachedLatents(dataset, MemoryLatents(own))
        latents = DiskLatents(folder, [dataset.image_hash(index) for index in range(len(dataset))])
        missing = latents.missing()
        accelerator.wait_for_everyone()  # all have the same list before one writes
        if missing:
            latents.write(self._encode(dataset, missing, views))
            accelerator.wait_for_everyone()
            latents.missing()
        return CachedLatents(dataset, latents)

    def _encode(self, dataset: ImageDataset, indices: list[int], views: int) -> Iterator[tuple[int, Tensor]]:
        """The entries of this process's part of the images."""
        accelerator = self.accelerator
        groups = [[indices[place] for place in chunk] for chunk in chunks(len(indices))]
        own = groups[accelerator.process_index :: accelerator.num_processes]
        count = sum(map(len, own))
        workers = self.config.training.num_workers
        with (
            progress_bar(total=count, desc="encoding images", unit="image", enabled=accelerator.is_main_process) as bar,
            accelerator.autocast(),
        ):
            for entry in encode(dataset, own, views, self.codec, accelerator.device, workers):
                yield entry
                bar.update()
        dataset.release()

    def _folder(self, dataset: ImageDataset, views: int) -> Path:
        """The folder of the entries of this autoencoder, resizing, precision and number of views."""
        config = self.config
        data = {key: value for key, value in asdict(config.data).items() if key not in NOT_OF_PIXELS}
        precision = "bf16" if self.accelerator.mixed_precision == "bf16" else "no"  # encoded in float32 under fp16
        resizing = [config.task != "diffusion", needs_layout(config), dataset.buckets is not None]
        parts = [fingerprint(self.codec.vae), data, resizing, precision, views]
        key = json.dumps(parts, sort_keys=True)
        root = Path(config.latent.cache_dir).expanduser() if config.latent.cache_dir else cache_folder("latents")
        return root / hashlib.sha256(key.encode()).hexdigest()[:16]


def resolve_mode(config: RunConfig, codec: LatentCodec, train: ImageDataset, steps: int) -> str:
    """`latent.cache` with auto resolved: memory where augmentation allows it, it pays and it fits; else none."""
    views = num_views(train)
    reads_pixels = config.diffusion.condition == "image" or config.diffusion.inpainting.enabled
    if config.latent.cache != "auto" or views is None or reads_pixels:
        return "none" if config.latent.cache == "auto" else config.latent.cache
    others = 0 if train.regularization is None else len(train.regularization)  # each step uses as many of both
    uses = steps * config.training.batch_size / (views * max(len(train), others))
    size = train[0]["image"].shape[-2:]
    if any(length % codec.factor for length in size):
        return "none"  # refused by a denoiser, padded by a segmentation head
    cells = size.numel() // codec.factor**2
    moments = 2 * codec.channels if codec.has_posterior else codec.channels
    fits = 2 * views * moments * cells * (len(train) + others) <= MAX_BYTES
    return "memory" if uses >= MIN_USES and fits else "none"


def codec_of(task: Task) -> LatentCodec | None:
    """The autoencoder of a task or of one of its parts; None for pixels and masks."""
    codecs = (getattr(part, "codec", None) for part in task.modules())
    return next((codec for codec in codecs if isinstance(codec, LatentCodec)), None)
