"""Memorization: the nearest training images of samples, and whether samples are closer to them than held-out images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.transforms import resize_image
from unetdiff.diffusion.images import grid
from unetdiff.errors import UserError

QUANTILE = 0.05
PIXEL_SIDE = 64  # pixels; larger images are resized down to it


@dataclass(frozen=True)
class NearestImages:
    """The k nearest images of each query, nearest first."""

    distances: Tensor
    """(Q, k) float64."""
    indices: Tensor
    """(Q, k) int64, into the dataset."""


def nearest_images(queries: Tensor, chunks: Iterable[Tensor], k: int) -> NearestImages:
    """The k nearest points, by Euclidean distance, of queries (Q, D) among points that come in chunks (b, D).

    Memory: the queries, one chunk, and Q · (k + b) distances.

    Raises:
        UserError: fewer than k points.
    """
    queries = queries.double()
    distances = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for chunk in chunks:
        numbers = torch.arange(start, start + len(chunk)).expand(len(queries), -1)
        distances = torch.cat([distances, torch.cdist(queries, chunk.double())], dim=1)  # (Q, k + b)
        indices = torch.cat([indices, numbers], dim=1)
        distances, order = distances.topk(min(k, distances.shape[1]), largest=False)
        indices = indices.gather(1, order)
        start += len(chunk)
    if start < k:
        raise UserError(f"num_neighbors={k}: must be at most the number of training images, {start}.")
    return NearestImages(distances, indices)


def pixel_features(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) as points (B, D), whose distance is the root mean square error in levels of 255.

    Images larger than 64 pixels are resized down first.
    """
    height, width = images.shape[-2:]
    factor = min(1.0, PIXEL_SIDE / max(height, width))
    small = resize_image(images, (max(1, round(height * factor)), max(1, round(width * factor))))
    points = rearrange(small.float(), "b c h w -> b (c h w)")
    return points / points.shape[1] ** 0.5


def memorized_fraction(samples: Tensor, held_out: Tensor, quantile: float = QUANTILE) -> float:
    """Fraction of samples closer to a training image than the `quantile` of held-out real images.

    Expected: `quantile` for samples of the data distribution, 1 for copies. A threshold in place of the rank test of
    Meehan et al. 2020, "A non-parametric test to detect data-copying in generative models".

    Args:
        samples: distance of each sample to its nearest training image, (S,).
        held_out: the same of held-out real images, (H,).
        quantile: of the held-out distances.
    """
    return (samples.double() < held_out.double().quantile(quantile)).double().mean().item()


@dataclass(frozen=True)
class Memorization:
    """Nearest training images in one feature space."""

    space: str
    """Name of the feature network, or "pixels"."""
    samples: NearestImages
    held_out: NearestImages

    @property
    def fraction(self) -> float:
        """See `memorized_fraction`."""
        return memorized_fraction(self.samples.distances[:, 0], self.held_out.distances[:, 0])


def measure_memorization(
    space: str, samples: Tensor, held_out: Tensor, training: Iterable[Tensor], k: int
) -> Memorization:
    """Nearest images of samples (S, D) and held-out real images (H, D) among training images in chunks (b, D)."""
    nearest = nearest_images(torch.cat([samples, held_out]), training, k)
    n = len(samples)
    return Memorization(
        space,
        NearestImages(nearest.distances[:n], nearest.indices[:n]),
        NearestImages(nearest.distances[n:], nearest.indices[n:]),
    )


def neighbors_image(
    samples: Tensor, labels: Sequence[str], training: ImageDataset, spaces: Sequence[Memorization]
) -> Image.Image:
    """A row for each sample: the sample, then its nearest training images in each feature space.

    Args:
        samples: uint8 (n, 3, H, W), the first n of those in `spaces`.
        labels: row labels, n.
        training: the training images.
        spaces: the neighbors in each feature space.
    """
    k = spaces[0].samples.indices.shape[1]
    tiles = []
    for row, sample in enumerate(samples):
        indices = [int(index) for space in spaces for index in space.samples.indices[row]]
        real = [training[index]["image"] for index in indices]
        tiles += [sample, *(resize_image(image, (sample.shape[-2], sample.shape[-1])) for image in real)]
    columns = ["sample", *(f"{space.space} {rank}" for space in spaces for rank in range(1, k + 1))]
    return grid(torch.stack(tiles), rows=labels, columns=columns, title="Nearest training images", cell=72)
