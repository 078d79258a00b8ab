"""One row: both sides built, given the same weights, counted, timed in turns, and their memory measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_high
from typing import Literal

import torch

from suite.cases.case import Case, Cost, Setting, same_work
from unetdiff.benchmark.memory import peak_working_memory, release_memory, run_in_subprocess
from unetdiff.benchmark.multiply_adds import parameters
from unetdiff.benchmark.timing import Round, Spread, Times, speedup, synchronizer, time_interleaved

Which = Literal["ours", "theirs"]


@dataclass(frozen=True)
class Outcome:
    """What one side's round costs."""

    name: str
    precision: str
    parameters: int
    macs: float
    """Multiply-adds."""
    seconds: Spread
    cpu_seconds: Spread
    share: float | None
    """Of the machine's ceiling at this precision; None where there is nothing to count, or no such ceiling."""
    memory: int | None
    """Bytes at the peak beyond the network's own; None: not measured."""

    @property
    def flops(self) -> float:
        """Operations a second at the median."""
        return 2 * self.macs / self.seconds.median


@dataclass(frozen=True)
class Row:
    """A case's outcome."""

    name: str
    setting: Setting
    ours: Outcome
    theirs: Outcome
    speedup: Spread
    """How many times as long theirs takes, of the rounds' own ratios."""
    cpu_speedup: Spread
    """The same by CPU time."""
    target: float
    """What the speedup should be."""
    figures: Mapping[str, float]
    """How well the two agree."""
    figure_targets: Mapping[str, float]
    """The least that some of these should be."""

    @property
    def memory_ratio(self) -> float | None:
        """Ours as a share of theirs."""
        if self.ours.memory is None or not self.theirs.memory:
            return None
        return self.ours.memory / self.theirs.memory


@dataclass(frozen=True)
class Contest:
    """Both sides, ready to be timed; ours comes first everywhere."""

    names: tuple[str, str]
    precisions: tuple[str, str]
    costs: tuple[Cost, Cost]
    rounds: Sequence[Round]
    figures: Mapping[str, float]


def prepare(case: Case, device: torch.device) -> Contest:
    """Build both sides of a case and see that they do the same work.

    Raises:
        UserError: they do not.
    """
    sides = case.ours(device), case.theirs(device)
    figures = case.match(*sides)
    numbers = [parameters(side.network) for side in sides]  # before anything is folded
    work = {side.name: side.start() for side in sides}
    plain = {side.name: side.plain() if side.plain else work[side.name] for side in sides}
    costs = same_work(case.name, *sides, plain, numbers) if case.counted else (Cost(0, 0), Cost(0, 0))
    a, b = sides
    return Contest((a.name, b.name), (a.precision, b.precision), costs, (work[a.name], work[b.name]), figures)


def race(contests: Sequence[Contest], device: torch.device, rounds: int, warmups: int) -> list[tuple[Times, Times]]:
    """Time all of them in turns: ours and theirs of each."""
    work = {f"{place}, {side}": contests[place].rounds[side] for place in range(len(contests)) for side in (0, 1)}
    times = list(time_interleaved(work, rounds, warmups, synchronizer(device)).values())
    return list(zip(times[::2], times[1::2], strict=True))


def compare(
    case: Case, device: torch.device, ceilings: Mapping[str, float], rounds: int, warmups: int, memory: int
) -> Row:
    """The row of a case.

    Args:
        case: what is compared.
        device: what it runs on.
        ceilings: operations a second that the machine reaches, by precision.
        rounds: that are timed.
        warmups: rounds before them.
        memory: processes of each side in which its memory is measured, of which the median counts; 0: none.
    """
    contest = prepare(case, device)
    [all_times] = race([contest], device, rounds, warmups)
    contest = replace(contest, rounds=())
    release_memory(device)  # both networks are gone before others are made

    def outcome(side: int, which: Which) -> Outcome:
        cost, times, precision = contest.costs[side], all_times[side], contest.precisions[side]
        seconds = Spread.of(times.wall)
        counted = cost.macs and precision in ceilings
        share = 2 * cost.macs / seconds.median / ceilings[precision] if counted else None
        peaks = [run_in_subprocess(peak_memory, case, which, device) for _ in range(memory)]
        found = [peak for peak in peaks if peak is not None]
        peak = median_high(found) if found else None
        name, cpu = contest.names[side], Spread.of(times.cpu)
        return Outcome(name, precision, cost.parameters, cost.macs, seconds, cpu, share, peak)

    ours, theirs = all_times
    return Row(
        case.name,
        case.setting,
        outcome(0, "ours"),
        outcome(1, "theirs"),
        speedup(ours.wall, theirs.wall),
        speedup(ours.cpu, theirs.cpu),
        case.target,
        contest.figures,
        case.figure_targets,
    )


def peak_memory(case: Case, which: Which, device: torch.device) -> int | None:
    """Bytes that one side's rounds take beyond its network, in a process that has done nothing else."""
    side = case.ours(device) if which == "ours" else case.theirs(device)
    return peak_working_memory(side.start, device)
