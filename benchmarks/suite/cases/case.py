"""What a case is: one piece of work by ours and by a peer, and what makes the comparison a fair one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

import unetdiff
from unetdiff.benchmark.ceiling import precision_of
from unetdiff.benchmark.multiply_adds import macs
from unetdiff.benchmark.rounds import training_workload
from unetdiff.benchmark.timing import Round
from unetdiff.errors import UserError
from unetdiff.training import runtime as machine
from unetdiff.training.config import TrainingConfig
from unetdiff.training.tasks.base import Batch, Task

Setting = Literal["defaults", "best", "compiled"]
"""defaults: what each library gives to who does not choose. best: the fastest known settings that compile nothing, the
same for both. compiled: those, and torch.compile with frozen weights, for both."""

SETTINGS: tuple[Setting, ...] = ("defaults", "best")
TOLERANCE = 0.05  # how far apart two networks may be in parameters and in multiply-adds
MEMORY_TARGET = 0.9  # ours, as a share of the peer's
OURS = f"unetdiff {unetdiff.__version__}"
PLAIN = {"training.ema.enabled": False, "training.optimizer.max_grad_norm": 0.0}
"""What our best settings leave out of a training step, as the peers' have neither."""


@dataclass(frozen=True)
class Side:
    """One of the two."""

    name: str
    """The library."""
    network: nn.Module
    """Whose parameters are counted; an empty module where the work has none."""
    precision: str
    """What most of it is computed in: float32 or bf16."""
    start: Callable[[], Round]
    """Makes what a round needs beside the network (optimizer, average, input), and gives the round."""
    plain: Callable[[], Round] | None = None
    """The same round not compiled, for compiled code hides its multiply-adds; None: `start` gives no compiled one."""


@dataclass(frozen=True)
class Case(ABC):
    """One row of the table. A case is plain values, so that it can be built anew in a process that measures memory."""

    setting: Setting
    batch: int
    size: int
    """Height and width in pixels."""

    work: ClassVar[str]
    targets: ClassVar[dict[str, float]]
    """How many times as fast ours should be, by setting."""
    counted: ClassVar[bool] = True
    """Whether the work is multiply-adds for the most part, so that they can be compared."""

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"{self.work}, {self.size} x {self.size}, batch {self.batch}"

    @property
    def best(self) -> bool:
        """Whether both are at their best settings, compiled or not."""
        return self.setting != "defaults"

    @property
    def target(self) -> float:
        """How many times as fast ours should be."""
        return self.targets[self.setting]

    @property
    def figure_targets(self) -> dict[str, float]:
        """The least that figures of `match` should be."""
        return {}

    @abstractmethod
    def ours(self, device: torch.device) -> Side:
        """Our side."""

    @abstractmethod
    def theirs(self, device: torch.device) -> Side:
        """The peer's side."""

    def match(self, ours: Side, theirs: Side) -> dict[str, float]:
        """Give ours the peer's weights where they fit, before anything is timed; figures of how well they agree."""
        return {}


@dataclass(frozen=True)
class Cost:
    """What one side has to compute."""

    parameters: int
    macs: float
    """Multiply-adds of one round."""


def same_work(
    name: str, ours: Side, theirs: Side, rounds: Mapping[str, Round], numbers: Sequence[int]
) -> tuple[Cost, Cost]:
    """What each side has to compute, which must be the same within `TOLERANCE`.

    Args:
        name: of the case.
        ours: our side.
        theirs: the peer's.
        rounds: a started round of each, by the side's name; done once, to count.
        numbers: parameters of ours and of theirs.

    Raises:
        UserError: they are further apart; names both.
    """
    a, b = (Cost(number, macs(rounds[side.name])) for number, side in zip(numbers, (ours, theirs), strict=True))
    for what, x, y in (("parameters", a.parameters, b.parameters), ("multiply-adds", a.macs, b.macs)):
        if abs(x - y) > TOLERANCE * max(x, y):
            raise UserError(
                f"{name}: {what} differ, {ours.name} has {x / 1e6:,.2f} M and {theirs.name} {y / 1e6:,.2f} M, more "
                f"than {100 * TOLERANCE:.0f} % apart, so their times do not compare; give both the same widths"
            )
    return a, b


def our_training(task: Task, batch: Batch, settings: TrainingConfig, device: torch.device) -> Side:
    """Our side of an optimizer step."""
    task.to(device)
    return Side(OURS, task, fast_precision(device), lambda: training_workload(task, batch, settings))


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the machine is fast at it, as `unetdiff` takes it there; else None."""
    return machine.autocast_dtype(device=device.type)


def fast_precision(device: torch.device) -> str:
    """The name of `fast_dtype`."""
    return precision_of(fast_dtype(device))
