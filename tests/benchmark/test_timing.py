"""Interleaved rounds on a fake clock, and quartiles against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from unetdiff.benchmark.timing import Quartiles, Times, speedup, synchronizer, time_interleaved


class Machine:
    """Workloads of fixed duration, on a device that runs them on synchronization."""

    def __init__(self) -> None:
        self.wall = self.cpu = self.queued = 0.0
        self.done: list[str] = []

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """Each call takes the next of these seconds."""
        rest = list(seconds)

        def run() -> None:
            self.done.append(name)
            self.queued += rest.pop(0)
            self.cpu += 0.5

        return run

    def wait(self) -> None:
        self.wall, self.queued = self.wall + self.queued, 0.0


@pytest.mark.parametrize("values", [[7.0], [1.0, 2.0], [4.0, 1.0, 3.0, 2.0], [9.0, 1.0, 8.0, 2.0, 5.0]])
def test_quartiles_are_numpys(values: list[float]) -> None:
    result = Quartiles.of(values)
    assert [result.lower, result.median, result.upper] == pytest.approx(np.percentile(values, [25, 50, 75]))


def test_rounds_alternate_and_warm_ups_are_not_counted() -> None:
    machine = Machine()
    work = {"a": machine.work("a", 100, 1, 2), "b": machine.work("b", 200, 10, 20)}
    times = time_interleaved(work, 2, 1, machine.wait, lambda: machine.wall, lambda: machine.cpu)
    assert machine.done == ["a", "b", "b", "a", "a", "b"]
    assert times == {"a": Times([1, 2], [0.5, 0.5]), "b": Times([10, 20], [0.5, 0.5])}


def test_asynchronous_work_counts_for_its_workload() -> None:
    machine = Machine()
    work = {"slow": machine.work("slow", 5), "quick": machine.work("quick", 1)}
    waited = time_interleaved(work, 1, 0, machine.wait, lambda: machine.wall, lambda: machine.cpu)
    assert (waited["slow"].wall, waited["quick"].wall) == ([5], [1])


def test_speedup_is_the_median_of_ratios() -> None:
    """In the third round both are 10× slower, which does not change the ratio."""
    result = speedup([1, 2, 10], [2, 8, 30])
    assert (result.lower, result.median, result.upper) == (2.5, 3, 3.5)


def test_synchronizer(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    synchronizer(torch.device("cpu"))()
    assert waited == []
    synchronizer(torch.device("cuda", 1))()
    assert waited == [torch.device("cuda", 1)]
