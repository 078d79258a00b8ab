"""Time taken fairly: several pieces of work in turns in one process, by the wall and by the CPU, with their spread.

A neighbour on the machine slows down whatever runs at that moment. In turns it meets all of them, and the ratio of two
that ran one after the other hardly feels it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Round = Callable[[], object]
"""One piece of work, done once."""
Clock = Callable[[], float]
"""Seconds since some moment."""

ROUNDS, WARMUPS = 10, 3


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles (interpolated linearly, as numpy does)."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one number or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Times:
    """Seconds of every round, in order."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Of all threads of this process: what a busy neighbour changes least. Of a GPU, the launching alone."""


def time_interleaved(
    work: Mapping[str, Round],
    rounds: int = ROUNDS,
    warmups: int = WARMUPS,
    synchronize: Callable[[], None] = lambda: None,
    wall: Clock = time.perf_counter,
    cpu: Clock = time.process_time,
) -> dict[str, Times]:
    """Time each piece of work once a round: there in their order, back in the next round, and so on.

    Args:
        work: pieces by name.
        rounds: that are timed.
        warmups: rounds before them that are not.
        synchronize: waits until the device has done what it was given; called before each look at a clock.
        wall: clock on the wall.
        cpu: clock of the process.
    """
    times = {name: Times() for name in work}
    for number in range(warmups + rounds):
        for name in list(work)[:: 1 if number % 2 == 0 else -1]:
            synchronize()
            began = wall(), cpu()
            work[name]()
            synchronize()
            ended = wall(), cpu()
            if number >= warmups:
                times[name].wall.append(ended[0] - began[0])
                times[name].cpu.append(ended[1] - began[1])
    return times


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as long theirs takes: of the ratios of each round, so that what slows a round down cancels out."""
    return Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits for a device: a GPU is asked, a CPU has done its work when it returns."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)
