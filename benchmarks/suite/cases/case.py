"""A case: one workload of unetdiff and of a peer, and the checks that make the comparison fair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar, Literal

import torch
from torch import nn

from unetdiff.benchmark.multiply_adds import count_macs
from unetdiff.benchmark.peak_throughput import precision_name
from unetdiff.benchmark.timing import Workload
from unetdiff.benchmark.workloads import training_workload
from unetdiff.config.training import TrainingConfig
from unetdiff.errors import UserError
from unetdiff.training import runtime
from unetdiff.training.tasks.base import Batch, Task

Setting = Literal["defaults", "best", "compiled"]
"""defaults: the default settings of each library. best: the fastest known settings without compilation, the same for
both. compiled: best, with torch.compile and constant weights for both."""

SETTINGS: tuple[Setting, ...] = ("defaults", "best")
TOLERANCE = 0.05  # relative difference allowed in parameters and multiply-adds
MAX_MEMORY_RATIO = 0.9  # of unetdiff to the peer
UNETDIFF = f"unetdiff {version('unetdiff')}"
NO_EMA_NO_CLIPPING = {"training.ema.enabled": False, "training.optimizer.max_grad_norm": 0.0}
"""Settings of unetdiff\'s training step at best; the peers\' have neither."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    """The library."""
    network: nn.Module
    """Its parameters are counted; an empty module for work without parameters."""
    precision: str
    """Main compute precision: float32 or bf16."""
    start: Callable[[], Workload]
    """Allocates what a round needs besides the network (optimizer, EMA, input), and returns the workload."""
    start_uncompiled: Callable[[], Workload] | None = None
    """The same without compilation, which hides multiply-adds; None: `start` does not compile."""


@dataclass(frozen=True)
class Case(ABC):
    """One row of the table. Holds plain values only, so that a subprocess can rebuild it to measure memory."""

    setting: Setting
    batch: int
    size: int
    """Height and width in pixels."""

    work: ClassVar[str]
    min_speedups: ClassVar[dict[str, float]]
    """Floor of the speedup over the peer, by setting."""
    compares_macs: ClassVar[bool] = True
    """Whether multiply-adds dominate the work and are compared."""

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"{self.work}, {self.size} x {self.size}, batch {self.batch}"

    @property
    def best(self) -> bool:
        """Whether both use their best settings, compiled or not."""
        return self.setting != "defaults"

    @property
    def min_speedup(self) -> float:
        """Floor of the speedup over the peer."""
        return self.min_speedups[self.setting]

    @property
    def min_agreement(self) -> dict[str, float]:
        """Floors of metrics of `match_weights`."""
        return {}

    @abstractmethod
    def unetdiff(self, device: torch.device) -> Side:
        """unetdiff's side."""

    @abstractmethod
    def peer(self, device: torch.device) -> Side:
        """The peer's side."""

    def match_weights(self, unetdiff: Side, peer: Side) -> dict[str, float]:
        """Copy the peer's weights to unetdiff where they fit, before timing; returns metrics of agreement."""
        return {}


@dataclass(frozen=True)
class Cost:
    """Size of the computation of one side."""

    parameters: int
    macs: float
    """Multiply-adds of one round."""


def same_work(
    name: str, unetdiff: Side, peer: Side, rounds: Mapping[str, Workload], numbers: Sequence[int]
) -> tuple[Cost, Cost]:
    """The costs of both sides, which must agree within `TOLERANCE`.

    Args:
        name: of the case.
        unetdiff: unetdiff's side.
        peer: the peer's side.
        rounds: a workload of each by the side's name, which is run once.
        numbers: parameters of both.

    Raises:
        UserError: the costs differ by more.
    """
    a, b = (Cost(number, count_macs(rounds[side.name])) for number, side in zip(numbers, (unetdiff, peer), strict=True))
    for what, x, y in (("parameters", a.parameters, b.parameters), ("multiply-adds", a.macs, b.macs)):
        if abs(x - y) > TOLERANCE * max(x, y):
            raise UserError(
                f"{name}: {what} must agree within {100 * TOLERANCE:.0f} % (got {x / 1e6:,.2f} M in {unetdiff.name} "
                f"and {y / 1e6:,.2f} M in {peer.name}). Use the same widths."
            )
    return a, b


def unetdiff_training(task: Task, batch: Batch, settings: TrainingConfig, device: torch.device) -> Side:
    """unetdiff's side of a training step."""
    task.to(device)
    return Side(UNETDIFF, task, fast_precision(device), lambda: training_workload(task, batch, settings))


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the machine computes it natively, as in unetdiff; else None."""
    return runtime.autocast_dtype(device=device.type)


def fast_precision(device: torch.device) -> str:
    """Name of `fast_dtype`."""
    return precision_name(fast_dtype(device))
