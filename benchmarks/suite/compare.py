"""Comparison of both sides of a case: equal weights, cost, interleaved timing, peak memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_high
from typing import Literal

import torch

from suite.cases.case import Case, Cost, Setting, same_work
from unetdiff.benchmark.memory import peak_working_memory, release_memory, run_in_subprocess
from unetdiff.benchmark.multiply_adds import count_parameters
from unetdiff.benchmark.timing import Quartiles, Times, Workload, speedup, synchronizer, time_interleaved

Which = Literal["unetdiff", "peer"]


@dataclass(frozen=True)
class Outcome:
    """Measurements of one side."""

    name: str
    precision: str
    parameters: int
    macs: float
    """Multiply-adds."""
    seconds: Quartiles
    cpu_seconds: Quartiles
    utilization: float | None
    """Fraction of the machine's peak throughput at this precision; None if either is unknown."""
    memory: int | None
    """Peak memory in bytes beyond that of the network; None if it was not measured."""

    @property
    def flops(self) -> float:
        """FLOP/s at the median."""
        return 2 * self.macs / self.seconds.median


@dataclass(frozen=True)
class Row:
    """Result of a case."""

    name: str
    setting: Setting
    unetdiff: Outcome
    peer: Outcome
    speedup: Quartiles
    """Ratio of the peer's time to unetdiff's, from the ratios of each round."""
    cpu_speedup: Quartiles
    """The same in CPU time."""
    min_speedup: float
    """Floor of the speedup."""
    agreement: Mapping[str, float]
    """Metrics of how well the outputs agree."""
    min_agreement: Mapping[str, float]
    """Floors of some of these."""

    @property
    def memory_ratio(self) -> float | None:
        """Peak memory of unetdiff relative to the peer."""
        if self.unetdiff.memory is None or not self.peer.memory:
            return None
        return self.unetdiff.memory / self.peer.memory


@dataclass(frozen=True)
class Pair:
    """Both sides, ready for timing; unetdiff comes first in each tuple."""

    names: tuple[str, str]
    precisions: tuple[str, str]
    costs: tuple[Cost, Cost]
    rounds: Sequence[Workload]
    agreement: Mapping[str, float]


def prepare(case: Case, device: torch.device) -> Pair:
    """Build both sides of a case and check that they do the same work.

    Raises:
        UserError: they do not.
    """
    sides = case.unetdiff(device), case.peer(device)
    agreement = case.match_weights(*sides)
    numbers = [count_parameters(side.network) for side in sides]  # before BatchNorm is folded
    work = {side.name: side.start() for side in sides}
    uncompiled = {side.name: side.start_uncompiled() if side.start_uncompiled else work[side.name] for side in sides}
    costs = same_work(case.name, *sides, uncompiled, numbers) if case.compares_macs else (Cost(0, 0), Cost(0, 0))
    a, b = sides
    return Pair((a.name, b.name), (a.precision, b.precision), costs, (work[a.name], work[b.name]), agreement)


def time_pairs(pairs: Sequence[Pair], device: torch.device, rounds: int, warmups: int) -> list[tuple[Times, Times]]:
    """Time both sides of all pairs, interleaved."""
    work = {f"{index}, {side}": pairs[index].rounds[side] for index in range(len(pairs)) for side in (0, 1)}
    times = list(time_interleaved(work, rounds, warmups, synchronizer(device)).values())
    return list(zip(times[::2], times[1::2], strict=True))


def compare(
    case: Case, device: torch.device, peak_flops: Mapping[str, float], rounds: int, warmups: int, memory: int
) -> Row:
    """Measure a case.

    Args:
        case: the case.
        device: device of both sides.
        peak_flops: the machine's peak throughput by precision.
        rounds: timed rounds.
        warmups: untimed rounds before them.
        memory: subprocesses for each side's peak memory, of which the median is taken; 0: not measured.
    """
    pair = prepare(case, device)
    [all_times] = time_pairs([pair], device, rounds, warmups)
    pair = replace(pair, rounds=())
    release_memory(device)  # before other networks are built

    def outcome(side: int, which: Which) -> Outcome:
        cost, times, precision = pair.costs[side], all_times[side], pair.precisions[side]
        seconds = Quartiles.of(times.wall)
        compares_macs = cost.macs and precision in peak_flops
        utilization = 2 * cost.macs / seconds.median / peak_flops[precision] if compares_macs else None
        peaks = [run_in_subprocess(peak_memory, case, which, device) for _ in range(memory)]
        known = [peak for peak in peaks if peak is not None]
        peak = median_high(known) if known else None
        name, cpu = pair.names[side], Quartiles.of(times.cpu)
        return Outcome(name, precision, cost.parameters, cost.macs, seconds, cpu, utilization, peak)

    unetdiff, peer = all_times
    return Row(
        case.name,
        case.setting,
        outcome(0, "unetdiff"),
        outcome(1, "peer"),
        speedup(unetdiff.wall, peer.wall),
        speedup(unetdiff.cpu, peer.cpu),
        case.min_speedup,
        pair.agreement,
        case.min_agreement,
    )


def peak_memory(case: Case, which: Which, device: torch.device) -> int | None:
    """Peak memory in bytes of one side beyond its network; run it in a subprocess."""
    side = case.unetdiff(device) if which == "unetdiff" else case.peer(device)
    return peak_working_memory(side.start, device)
