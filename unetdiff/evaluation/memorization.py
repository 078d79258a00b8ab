"""Whether samples are copies: their nearest training images, and how much nearer they are than unseen real ones."""

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
PIXEL_SIDE = 64  # larger images are compared at this size


@dataclass(frozen=True)
class Nearest:
    """The k nearest of each query, nearest first."""

    distances: Tensor
    """(Q, k) float64."""
    indices: Tensor
    """(Q, k) int64, places in the set."""


def nearest(queries: Tensor, parts: Iterable[Tensor], k: int) -> Nearest:
    """The k nearest points of a set that comes in parts (b, D), by Euclidean distance, to queries (Q, D).

    Held at once are the queries, one part, and Q · (k + b) distances.

    Raises:
        UserError: fewer than k points.
    """
    queries = queries.double()
    distances = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for part in parts:
        numbers = torch.arange(start, start + len(part)).expand(len(queries), -1)
        distances = torch.cat([distances, torch.cdist(queries, part.double())], dim=1)  # (Q, k + b)
        indices = torch.cat([indices, numbers], dim=1)
        distances, order = distances.topk(min(k, distances.shape[1]), largest=False)
        indices = indices.gather(1, order)
        start += len(part)
    if start < k:
        raise UserError(f"neighbours: {k} are asked for, but there are {start} training images")
    return Nearest(distances, indices)


def pixels_as_points(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) as points (B, D) whose distance is the root mean square difference in levels of 255.

    An image larger than 64 pixels is compared at that size.
    """
    height, width = images.shape[-2:]
    factor = min(1.0, PIXEL_SIDE / max(height, width))
    small = resize_image(images, (max(1, round(height * factor)), max(1, round(width * factor))))
    points = rearrange(small.float(), "b c h w -> b (c h w)")
    return points / points.shape[1] ** 0.5


def memorised_share(samples: Tensor, held_out: Tensor, quantile: float = QUANTILE) -> float:
    """Share of samples that are nearer to a training image than all but `quantile` of the unseen real images are.

    What is compared is each image's distance to its nearest training image, samples (S,) and unseen real ones (H,).
    Samples of the same distribution give `quantile`, copies give 1. (The question of Meehan et al. 2020, "A
    non-parametric test to detect data-copying in generative models", with a threshold instead of a rank test.)
    """
    return (samples.double() < held_out.double().quantile(quantile)).double().mean().item()


@dataclass(frozen=True)
class Copies:
    """What was found in one feature space."""

    space: str
    """The feature network's name, or "pixels"."""
    samples: Nearest
    """Of the samples."""
    held_out: Nearest
    """Of unseen real images."""

    @property
    def memorised(self) -> float:
        """See `memorised_share`."""
        return memorised_share(self.samples.distances[:, 0], self.held_out.distances[:, 0])


def find_copies(space: str, samples: Tensor, held_out: Tensor, training: Iterable[Tensor], k: int) -> Copies:
    """Neighbours of samples (S, D) and unseen real images (H, D) among training images in parts (b, D)."""
    found = nearest(torch.cat([samples, held_out]), training, k)
    cut = len(samples)
    return Copies(
        space,
        Nearest(found.distances[:cut], found.indices[:cut]),
        Nearest(found.distances[cut:], found.indices[cut:]),
    )


def neighbours_image(
    samples: Tensor, labels: Sequence[str], training: ImageDataset, found: Sequence[Copies]
) -> Image.Image:
    """A row for each sample: itself, then its nearest training images in each feature space.

    Args:
        samples: uint8 (n, 3, H, W), the first n of those that were looked up.
        labels: what each is called, n.
        training: the set that they were looked up in.
        found: a space each.
    """
    k = found[0].samples.indices.shape[1]
    shown = []
    for row, sample in enumerate(samples):
        numbers = [int(index) for copies in found for index in copies.samples.indices[row]]
        real = [training[number]["image"] for number in numbers]
        shown += [sample, *(resize_image(image, (sample.shape[-2], sample.shape[-1])) for image in real)]
    columns = ["sample", *(f"{copies.space} {place}" for copies in found for place in range(1, k + 1))]
    return grid(torch.stack(shown), rows=labels, columns=columns, title="Nearest training images", cell=72)
