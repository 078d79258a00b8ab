"""The real pictures that samples are held against: read part by part, and their features kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from unetdiff.data import PictureDataset, eval_loader
from unetdiff.errors import UserError
from unetdiff.files import sha256_of
from unetdiff.judging.distances import Gaussian
from unetdiff.judging.features import BATCH, FeatureNetwork
from unetdiff.models.loading import save_tensors


@dataclass(frozen=True)
class Reference:
    """The features of real pictures."""

    name: str
    """Set and split."""
    features: Tensor
    """(N, D) float32, in the set's order."""

    @cached_property
    def gaussian(self) -> Gaussian:
        """Their mean and covariance."""
        return Gaussian.of(self.features)


def reference(pictures: PictureDataset, name: str, network: FeatureNetwork, cache: Path | None = None) -> Reference:
    """The features of a set's pictures, computed or as they were kept.

    What was kept holds for the same names and pixels, in the same order, and the same network. It costs one reading of
    the set to know that, and no network.

    Args:
        pictures: the set.
        name: what it is called.
        network: the feature network.
        cache: where they are kept, without a suffix (two files); None: nowhere.

    Raises:
        UserError: an empty set, or pictures of several sizes.
    """
    if len(pictures) == 0:
        raise UserError(f"{name}: there are no real pictures to hold samples against")
    if cache is not None and _files(cache)[0].is_file() and _files(cache)[1].is_file():
        digest = _digest(network)
        for batch in batches(pictures, f"reading {name}"):
            _add(digest, batch)
        kept = _load(cache, digest.hexdigest(), len(pictures))
        if kept is not None:
            return Reference(name, kept)
    digest, parts = _digest(network), []
    for batch in batches(pictures, f"{network.name} features of {name}"):
        _add(digest, batch)
        parts.append(network(batch["image"]))
    features = torch.cat(parts)
    if cache is not None:
        _save(cache, features, digest.hexdigest(), network, name)
    return Reference(name, features)


def batches(pictures: PictureDataset, what: str, size: int = BATCH) -> Iterator[dict[str, Any]]:
    """A set part by part, with a progress bar; "image" is uint8 (B, 3, H, W).

    Raises:
        UserError: pictures of several sizes.
    """
    shape = None
    for batch in tqdm(eval_loader(pictures, size), desc=what, unit="batch", disable=None):
        images = batch["image"]
        found = images[0].shape
        if isinstance(images, list) or (shape is not None and found != shape):
            raise UserError(f"{batch['name'][0]}: the set's pictures differ in size; set data.size to [height, width]")
        shape = found
        yield batch


def _files(cache: Path) -> tuple[Path, Path]:
    return cache.with_name(f"{cache.name}.safetensors"), cache.with_name(f"{cache.name}.json")


def _digest(network: FeatureNetwork) -> Any:
    return hashlib.sha256(network.fingerprint.encode())


def _add(digest: Any, batch: dict[str, Any]) -> None:
    digest.update(json.dumps([batch["name"], list(batch["image"].shape)]).encode())
    digest.update(batch["image"].contiguous().numpy().tobytes())


def _save(cache: Path, features: Tensor, fingerprint: str, network: FeatureNetwork, name: str) -> None:
    tensors, about = _files(cache)
    cache.parent.mkdir(parents=True, exist_ok=True)
    aside = tensors.with_name(f".writing-{tensors.name}")
    save_tensors({"features": features}, aside)
    facts = {
        "fingerprint": fingerprint,
        "network": network.name,
        "pictures": name,
        "shape": list(features.shape),
        "sha256": sha256_of(aside),
    }
    os.replace(aside, tensors)
    about.write_text(json.dumps(facts, indent=1) + "\n")


def _load(cache: Path, fingerprint: str, count: int) -> Tensor | None:
    """Features (N, D), or None where they are of something else, or damaged: a damaged cache is no cache."""
    tensors, about = _files(cache)
    try:
        facts = json.loads(about.read_text())
        if facts["fingerprint"] != fingerprint or facts["sha256"] != sha256_of(tensors):
            return None
        features = load_file(tensors)["features"]
    except (ValueError, KeyError, TypeError, OSError, SafetensorError):
        return None
    return features if features.ndim == 2 and len(features) == count else None
