"""Samplers whose order is a pure function of the seed and the optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from unetdiff.data.buckets import BucketOrder, Buckets
from unetdiff.data.hashing import generator_of, hash_words
from unetdiff.data.repeat_factors import balanced_epoch
from unetdiff.errors import UserError, config_error


class SampleKey(NamedTuple):
    """Index of a training sample, the seed of its augmentation, and whether strong augmentation is on."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    seed: int
    strong: bool


class StepSampler(Sampler[list[SampleKey]]):
    """Batch sampler of a training run, for `DataLoader(batch_sampler=...)`.

    Epoch e is a permutation by a generator seeded with (seed, e). Optimizer step s takes positions `s * batch_size` to
    `(s + 1) * batch_size` of the concatenated epochs, so every image is used once per epoch and none is dropped. A rank
    takes a contiguous part of the step, in `accumulation_steps` micro-batches. There is no state: starting at step
    `start` continues the same stream.

    Args:
        length: samples in the dataset.
        batch_size: samples per optimizer step, over all ranks and micro-batches.
        seed: seed of order and augmentation.
        stop: the run's number of optimizer steps.
        start: first step (on resume, the number of steps done).
        rank: this process.
        world_size: number of processes.
        accumulation_steps: micro-batches per step and rank.
        strong_until: first step without strong augmentation; None: strong until the end.
        factors: (length,), relative sampling frequency of each image (`unetdiff.data.repeat_factors`); None: uniform.
            An epoch still has `length` samples.
        buckets: resolution buckets: each step takes images of one of them, by its own stream (`BucketOrder`).

    Raises:
        UserError: the dataset is empty, or batch_size is not divisible by world_size * accumulation_steps.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        stop: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation_steps: int = 1,
        strong_until: int | None = None,
        factors: NDArray[np.float64] | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        if length < 1:
            raise UserError("The training split is empty. Give a split with at least one image.")
        if batch_size < 1 or batch_size % (world_size * accumulation_steps):
            factor = world_size * accumulation_steps
            raise config_error(
                "training.batch_size",
                batch_size,
                f"divisible by {world_size} process(es) x training.gradient_accumulation_steps={accumulation_steps}",
                f"Use e.g. {max(1, round(batch_size / factor)) * factor}.",
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.rank = rank
        self.world_size = world_size
        self.accumulation_steps = accumulation_steps
        self.strong_until = strong_until
        self.factors = factors
        self.buckets = buckets

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        per_rank = self.batch_size // self.world_size
        micro_batch = per_rank // self.accumulation_steps
        steps = self._steps() if self.buckets is None else self._bucket_steps(self.buckets)
        for step, samples in zip(range(self.start, self.stop), steps, strict=False):
            strong = self.strong_until is None or step < self.strong_until
            # 63 bits: workers pass it as a signed 64-bit integer.
            keys = [SampleKey(index, hash_words(self.seed, *words) >> 1, strong) for index, words in samples]
            for i in range(0, per_rank, micro_batch):
                yield keys[i : i + micro_batch]

    def _places(self) -> range:
        """The places of this rank's samples in a step's batch."""
        per_rank = self.batch_size // self.world_size
        return range(self.rank * per_rank, (self.rank + 1) * per_rank)

    def _steps(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """This rank's samples of each step: index, and the words of its seed."""
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(self.start, self.stop):
            samples: list[tuple[int, tuple[int, ...]]] = []
            for place in self._places():
                position = step * self.batch_size + place
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = self._permutation(epoch)
                index = int(order[position % self.length])
                # Repetitions of an image within an epoch are augmented differently.
                words = (epoch, index) if self.factors is None else (epoch, index, position % self.length)
                samples.append((index, words))
            yield samples

    def _bucket_steps(self, buckets: Buckets) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """`_steps` with the images of one bucket each."""
        order = BucketOrder(buckets, self.seed)
        for bucket, before in order.steps(self.start):
            drawn = [order.image(bucket, before * self.batch_size + place) for place in self._places()]
            yield [(index, (epoch, index)) for index, epoch in drawn]

    def _permutation(self, epoch: int) -> torch.Tensor:
        generator = generator_of(self.seed, epoch)
        order = torch.randperm(self.length, generator=generator)
        if self.factors is None:
            return order
        offset = float(torch.rand((), generator=generator))
        return torch.from_numpy(balanced_epoch(self.factors, offset))[order]


class EvalSampler(Sampler[list[int]]):
    """Batches of indices in order; every sample once over all ranks, without padding.

    Each rank has a contiguous part; their lengths differ by at most one sample, so the numbers of batches may differ
    (gather sums, not batches). Arguments as of `StepSampler`; `batch_size` is per rank.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise config_error("training.eval_batch_size", batch_size, "at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
        self.first = length * rank // world_size
        self.last = length * (rank + 1) // world_size
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-(self.last - self.first) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for i in range(self.first, self.last, self.batch_size):
            yield list(range(i, min(i + self.batch_size, self.last)))


def evenly_spaced_indices(length: int, count: int) -> list[int]:
    """At most `count` evenly spaced indices of 0..length-1, both ends included."""
    count = min(length, count)
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]
