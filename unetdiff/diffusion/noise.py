"""Noise per image: a pure function of the seed and the image's index, whatever the batch it is sampled in.

`sample`, `evaluate`, `compare`, the experiments and the previews of training all number their images and take the noise
of image `index` from here, so that the same seed, condition and index give the same image everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unetdiff.data.hashing import generator_of
from unetdiff.errors import UserError


def generator_for(seed: int, index: int) -> torch.Generator:
    """The generator of image `index`: of its starting noise, then of the noise of each step of a stochastic sampler.

    The two integers are hashed together (`unetdiff.data.hashing`), so image 1 of seed 0 is not image 0 of seed 1.
    """
    return generator_of(seed, index)


def generators_for(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """One generator per image, as `GenerationPipeline` takes them."""
    return [generator_for(seed, index) for index in indices]


def noise_for(seed: int, index: int, shape: Sequence[int]) -> Tensor:
    """The starting noise of image `index`, of unit variance, `shape` = (C, H, W), float32 on the CPU.

    It is what a pipeline draws from `generator_for(seed, index)`.
    """
    return torch.randn(*shape, generator=generator_for(seed, index))


def image_indices(rows: Sequence[int], num_rows: int, num_columns: int) -> list[list[int]]:
    """Indices of the images of a grid, one list per row: column by column, so that more columns keep the first ones.

    Image (row, column) has the index column · num_rows + row. Evaluation samples the classes in the same order.

    Args:
        rows: the rows that are sampled, each in 0..num_rows-1.
        num_rows: number of conditions, e.g. the classes of the model.
        num_columns: images per condition.
    """
    return [[column * num_rows + row for column in range(num_columns)] for row in rows]


def slerp(first: Tensor, last: Tensor, frames: int) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of two noises, both included: 2 × (C, H, W) -> (frames, C, H, W).

    A straight line would pass through noise of less variance, which gives gray images (Ho et al. 2020, section 4.4,
    interpolate images).

    Raises:
        UserError: fewer than two frames.
    """
    if frames < 2:
        raise UserError(f"frames={frames}: must be at least 2.")
    cosine = F.cosine_similarity(first.flatten(), last.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    fraction = torch.linspace(0, 1, frames, device=first.device)[:, None, None, None]
    if angle.sin() < 1e-4:  # parallel: a straight line
        return (1 - fraction) * first + fraction * last
    return (torch.sin((1 - fraction) * angle) * first + torch.sin(fraction * angle) * last) / torch.sin(angle)
