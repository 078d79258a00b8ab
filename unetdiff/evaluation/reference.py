"""Features of the real images that samples are compared with, cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset
from unetdiff.data.loaders import eval_loader
from unetdiff.errors import UserError
from unetdiff.evaluation.cache import is_cached, load_cache, save_cache
from unetdiff.evaluation.distances import Gaussian
from unetdiff.evaluation.features import BATCH, FeatureExtractor


@dataclass(frozen=True)
class Reference:
    """Features of real images."""

    name: str
    """Dataset and split."""
    features: Tensor
    """(N, D) float32, in the order of the dataset."""

    @cached_property
    def gaussian(self) -> Gaussian:
        """Their mean and covariance."""
        return Gaussian.fit(self.features)


def load_reference(images: ImageDataset, name: str, network: FeatureExtractor, cache: Path | None = None) -> Reference:
    """The features of a dataset's images, computed or from the cache.

    The cache is valid for the same image names and pixels, in the same order, and the same network. Checking it reads
    every image, but does not run the network.

    Args:
        images: the dataset.
        name: dataset and split.
        network: the feature network.
        cache: path of the cache without suffix; None: no cache.

    Raises:
        UserError: an empty dataset, or images of different sizes.
    """
    if len(images) == 0:
        raise UserError(f"{name}: requires at least one real image.")
    if cache is not None and is_cached(cache):
        digest = _digest(network)
        for batch in image_batches(images, f"reading {name}"):
            _update(digest, batch)
        features = _load(cache, digest.hexdigest(), len(images))
        if features is not None:
            return Reference(name, features)
    digest, chunks = _digest(network), []
    for batch in image_batches(images, f"{network.name} features of {name}"):
        _update(digest, batch)
        chunks.append(network(batch["image"]))
    features = torch.cat(chunks)
    if cache is not None:
        facts = {"network": network.name, "images": name, "shape": list(features.shape)}
        save_cache(cache, {"features": features}, digest.hexdigest(), **facts)
    return Reference(name, features)


def image_batches(dataset: ImageDataset, description: str, size: int = BATCH) -> Iterator[dict[str, Any]]:
    """Batches of a dataset, with a progress bar; "image" is uint8 (B, 3, H, W).

    Raises:
        UserError: images of different sizes.
    """
    shape = None
    for batch in progress_bar(eval_loader(dataset, size), desc=description, unit="batch"):
        images = batch["image"]
        batch_shape = images[0].shape
        if isinstance(images, list) or (shape is not None and batch_shape != shape):
            raise UserError(
                f"data.size=null: must be [height, width], because image sizes differ (first at {batch['name'][0]})."
            )
        shape = batch_shape
        yield batch


def _digest(network: FeatureExtractor) -> Any:
    return hashlib.sha256(network.fingerprint.encode())


def _update(digest: Any, batch: dict[str, Any]) -> None:
    digest.update(json.dumps([batch["name"], list(batch["image"].shape)]).encode())
    digest.update(batch["image"].contiguous().numpy().tobytes())


def _load(cache: Path, fingerprint: str, count: int) -> Tensor | None:
    """Features (N, D); None if they are missing, damaged, or of another fingerprint."""
    cached = load_cache(cache, fingerprint)
    features = None if cached is None else cached[1].get("features")
    if features is None or features.ndim != 2 or len(features) != count or features.dtype != torch.float32:
        return None
    return features
