"""Random numbers of a training step by image: functions of the seed, the step and the image's place in its batch.

They are drawn for the whole batch of the optimizer step, and every process and micro-batch takes the rows of its own
images. So the same batch gets the same numbers however it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from torch import Tensor

from unetdiff.data.hashing import hash_words

Draw = Callable[[int, torch.Generator], Tensor]
"""(N, a generator) -> random numbers of N images, (N, ...), on the generator's device."""


class StepDraws:
    """The random numbers of one optimizer step, each drawn once per process.

    Args:
        seed: of the step.
        images: in the step's whole batch.
        device: where the numbers are drawn.
    """

    def __init__(self, seed: int, images: int, device: torch.device | str) -> None:
        self.seed, self.images, self.device = seed, images, torch.device(device)
        self._drawn: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def rows(self, first: int, count: int) -> RowDraws:
        """Those of the images at `first` to `first + count`; every call starts with the first draw."""
        return RowDraws(self, first, count)

    def whole(self, number: int, draw: Draw, shape: tuple[int, ...]) -> Tensor:
        """The draw of this number for all images."""
        if (number, shape) not in self._drawn:
            generator = torch.Generator(self.device).manual_seed(hash_words(self.seed, number) >> 1)
            self._drawn[number, shape] = draw(self.images, generator)
        return self._drawn[number, shape]


class RowDraws:
    """The random numbers of the images of a process or micro-batch.

    Attributes:
        first: place of the first of them in the step's batch.
        count: number of them.
        images: in the step's whole batch.
    """

    def __init__(self, step: StepDraws, first: int, count: int) -> None:
        self.step, self.first, self.count, self.images = step, first, count, step.images
        self._number = 0

    def __call__(self, draw: Draw, shape: tuple[int, ...] = ()) -> Tensor:
        """The next draw, (count, ...). `shape`: of one image's numbers, where it depends on the image."""
        self._number += 1
        return self.step.whole(self._number, draw, shape)[self.first : self.first + self.count]

    def rows_at(self, places: Container[int]) -> list[int]:
        """Those of the images that are at these places of the step's batch, numbered from `first`."""
        return [row for row in range(self.count) if self.first + row in places]

    def again(self) -> RowDraws:
        """The same numbers from the first draw on, for a second pass."""
        return RowDraws(self.step, self.first, self.count)


def whole_batch(seed: int, images: int, device: torch.device | str) -> RowDraws:
    """Of a batch that is a whole step."""
    return StepDraws(seed, images, device).rows(0, images)
