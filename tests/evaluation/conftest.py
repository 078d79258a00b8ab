"""Small datasets of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset, empty_palette


class InMemory(ImageDataset):
    """Images in memory, uint8 (N, 3, H, W); labels cycle through the classes."""

    def __init__(self, images: Tensor, labels: list[str] | None = None, title: str = "memory") -> None:
        self.images, self.labels, self.title = images, labels or [], title
        self.classes, self.palette = [], empty_palette()

    def __len__(self) -> int:
        return len(self.images)

    def sample_name(self, index: int) -> str:
        return f"{self.title}/{index}"

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = self.sample_index(key)
        item: dict[str, Any] = {"image": self.images[index], "name": self.sample_name(index)}
        return item | ({"label": index % len(self.labels)} if self.labels else {})


def random_images(count: int, seed: int, side: int = 8) -> Tensor:
    """Random images, uint8 (N, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)


@pytest.fixture
def in_memory() -> Callable[..., InMemory]:
    """in_memory(images, labels=None, title="memory"): a dataset of these images."""
    return InMemory


@pytest.fixture
def noisy() -> Callable[..., Tensor]:
    """noisy(count, seed, side=8): random images."""
    return random_images
