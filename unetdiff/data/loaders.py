"""Loader of a whole dataset in order, for evaluation."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.sampling import EvalSampler


def eval_loader(
    dataset: ImageDataset, batch_size: int, rank: int = 0, world_size: int = 1
) -> DataLoader[dict[str, Any]]:
    """Batches (see `collate`) of this process's part of a dataset, not augmented; arguments as of `EvalSampler`."""
    sampler = EvalSampler(len(dataset), batch_size, rank, world_size)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
