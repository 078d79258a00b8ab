"""The real images that samples are held against: read part by part, and their features kept on disk."""

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
from tqdm import tqdm

from unetdiff.data.base import ImageDataset
from unetdiff.data.loaders import eval_loader
from unetdiff.errors import UserError
from unetdiff.evaluation.cache import is_kept, keep, kept
from unetdiff.evaluation.distances import Gaussian
from unetdiff.evaluation.features import BATCH, FeatureNetwork


@dataclass(frozen=True)
class Reference:
    """The features of real images."""

    name: str
    """Set and split."""
    features: Tensor
    """(N, D) float32, in the set's order."""

    @cached_property
    def gaussian(self) -> Gaussian:
        """Their mean and covariance."""
        return Gaussian.of(self.features)


def reference(images: ImageDataset, name: str, network: FeatureNetwork, cache: Path | None = None) -> Reference:
    """The features of a set's images, computed or as they were kept.

    What was kept holds for the same names and pixels, in the same order, and the same network. It costs one reading of
    the set to know that, and no network.

    Args:
        images: the set.
        name: what it is called.
        network: the feature network.
        cache: where they are kept, without a suffix (two files); None: nowhere.

    Raises:
        UserError: an empty set, or images of several sizes.
    """
    if len(images) == 0:
        raise UserError(f"{name}: there are no real images to hold samples against")
    if cache is not None and is_kept(cache):
        digest = _digest(network)
        for batch in batches(images, f"reading {name}"):
            _add(digest, batch)
        found = _load(cache, digest.hexdigest(), len(images))
        if found is not None:
            return Reference(name, found)
    digest, parts = _digest(network), []
    for batch in batches(images, f"{network.name} features of {name}"):
        _add(digest, batch)
        parts.append(network(batch["image"]))
    features = torch.cat(parts)
    if cache is not None:
        facts = {"network": network.name, "images": name, "shape": list(features.shape)}
        keep(cache, {"features": features}, digest.hexdigest(), **facts)
    return Reference(name, features)


def batches(dataset: ImageDataset, what: str, size: int = BATCH) -> Iterator[dict[str, Any]]:
    """A set part by part, with a progress bar; "image" is uint8 (B, 3, H, W).

    Raises:
        UserError: images of several sizes.
    """
    shape = None
    for batch in tqdm(eval_loader(dataset, size), desc=what, unit="batch", disable=None):
        images = batch["image"]
        found = images[0].shape
        if isinstance(images, list) or (shape is not None and found != shape):
            raise UserError(f"{batch['name'][0]}: the set's images differ in size; set data.size to [height, width]")
        shape = found
        yield batch


def _digest(network: FeatureNetwork) -> Any:
    return hashlib.sha256(network.fingerprint.encode())


def _add(digest: Any, batch: dict[str, Any]) -> None:
    digest.update(json.dumps([batch["name"], list(batch["image"].shape)]).encode())
    digest.update(batch["image"].contiguous().numpy().tobytes())


def _load(cache: Path, fingerprint: str, count: int) -> Tensor | None:
    """Features (N, D), or None where they are of something else, or damaged."""
    found = kept(cache, fingerprint)
    features = None if found is None else found[1].get("features")
    return features if features is not None and features.ndim == 2 and len(features) == count else None
