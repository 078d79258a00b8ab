"""Which sample comes when: a data order that is a pure function of the seed and the optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from unetdiff.data.hashing import generator_of, hash_words
from unetdiff.data.repeat_factors import balanced_epoch
from unetdiff.errors import UserError


class SampleKey(NamedTuple):
    """What a training dataset is asked for: a sample, the seed of its augmentation, and whether that is
    strong.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int
    strong: bool


class StepSampler(Sampler[list[SampleKey]]):
    """Batch sampler of a training run, for `DataLoader(batch_sampler=...)`.

    Epoch e is the permutation of a generator seeded by (seed, e). Optimizer step s takes the positions `s *
    batch_size` up to `(s + 1) * batch_size` of the epochs strung together, so every image is used once an
    epoch and none is dropped at its end. A rank takes its contiguous share of the step, in `accumulation_steps` micro-
    batches yielded one after another. Nothing is remembered: starting at step `start` gives the tail of the
    stream from 0.

    Args:
        length: samples in the set.
        batch_size: samples of one optimizer step, over all ranks and accumulation_steps.
        seed: seed of order and augmentation.
        stop: the run's number of optimizer steps; the sampler ends there.
        start: first step to give (the steps already done, on resume).
        rank, world_size: this process, and how many there are.
        accumulation_steps: micro-batches of a step and rank (gradient accumulation).
        strong_until: first step without strong augmentation; None: strong to the end.
        factors: (length,), relative sampling frequency of each image (`unetdiff.data.repeat_factors`); None: uniform.
            An epoch still has `length` samples.

    Raises:
        UserError: the set is empty, or batch_size does not divide by world_size * accumulation_steps.
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
    ) -> None:
        if length < 1:
            raise UserError("the training split holds no image: give a split with at least one")
        if batch_size < 1 or batch_size % (world_size * accumulation_steps):
            right = max(1, round(batch_size / (world_size * accumulation_steps))) * world_size * accumulation_steps
            raise UserError(
                f"training.batch_size={batch_size} does not divide by {world_size} process(es) x "
                f"training.gradient_accumulation_steps={accumulation_steps}: use e.g. {right}"
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

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        share = self.batch_size // self.world_size
        part = share // self.accumulation_steps
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(self.start, self.stop):
            strong = self.strong_until is None or step < self.strong_until
            first = step * self.batch_size + self.rank * share
            keys = []
            for position in range(first, first + share):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = self._permutation(epoch)
                index = int(order[position % self.length])
                # An image that comes twice in an epoch is augmented in two ways.
                words = (epoch, index) if self.factors is None else (epoch, index, position % self.length)
                # 63 bits: fits a signed 64-bit integer on its way through a worker.
                keys.append(SampleKey(index, hash_words(self.seed, *words) >> 1, strong))
            for i in range(0, share, part):
                yield keys[i : i + part]

    def _permutation(self, epoch: int) -> torch.Tensor:
        generator = generator_of(self.seed, epoch)
        order = torch.randperm(self.length, generator=generator)
        if self.factors is None:
            return order
        offset = float(torch.rand((), generator=generator))
        return torch.from_numpy(balanced_epoch(self.factors, offset))[order]


class EvalSampler(Sampler[list[int]]):
    """Batches of plain indices in order; every sample once over all ranks, without padding.

    A rank holds one contiguous share; shares differ by at most one sample, so ranks may give different
    numbers of batches (gather sums, not batches). Arguments as of `StepSampler`; `batch_size` is per rank.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise UserError(f"training.eval_batch_size={batch_size}: use 1 or more")
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
    """At most `count` indices spread over 0..length-1."""
    count = min(length, count)
    return [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]
