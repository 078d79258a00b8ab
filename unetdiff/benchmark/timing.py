"""Interleaved timing: several workloads alternate in one process, timed by wall clock and CPU time, with quartiles.

A disturbance of the machine slows down whatever runs at that moment. Interleaved, it affects all workloads, and hardly
changes the ratio of two of them from the same round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Workload = Callable[[], object]
"""One round of the work that is timed."""
Clock = Callable[[], float]
"""Seconds since a fixed moment."""

ROUNDS, WARMUPS = 10, 3


@dataclass(frozen=True)
class Quartiles:
    """A median between its quartiles (linear interpolation, as in numpy)."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Of at least one number."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Times:
    """Seconds of each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU time of all threads of this process, least affected by other processes. On a GPU: of the launches only."""


def time_interleaved(
    work: Mapping[str, Workload],
    rounds: int = ROUNDS,
    warmups: int = WARMUPS,
    synchronize: Callable[[], None] = lambda: None,
    wall: Clock = time.perf_counter,
    cpu: Clock = time.process_time,
) -> dict[str, Times]:
    """Run each workload once per round, in alternating order, and time it.

    Args:
        work: workloads by name.
        rounds: timed rounds.
        warmups: untimed rounds before them.
        synchronize: waits for the device; called before each clock is read.
        wall: wall clock.
        cpu: CPU clock of the process.
    """
    times = {name: Times() for name in work}
    for number in range(warmups + rounds):
        for name in list(work)[:: 1 if number % 2 == 0 else -1]:
            synchronize()
            start = wall(), cpu()
            work[name]()
            synchronize()
            end = wall(), cpu()
            if number >= warmups:
                times[name].wall.append(end[0] - start[0])
                times[name].cpu.append(end[1] - start[1])
    return times


def speedup(seconds: Sequence[float], baseline: Sequence[float]) -> Quartiles:
    """Quartiles of the ratio baseline / seconds of each round, so that disturbances of a round cancel."""
    return Quartiles.of([b / a for a, b in zip(seconds, baseline, strict=True)])


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits for the device's pending work (none on a CPU)."""
    if device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)
