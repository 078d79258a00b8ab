"""How much memory a piece of work takes at its peak, measured in a process of its own.

A process that has done other work holds freed memory that the next piece takes without asking the system, so it would
seem to need none. And `getrusage`'s ru_maxrss starts, in a child, at the highest of the parent's; Linux' own count of a
process's highest (VmHWM in /proc/self/status) starts anew with it.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from unetdiff.benchmark.timing import Round, synchronizer

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ROUNDS = 2  # the first training step makes the optimizer's state, the second has it beside the activations

Given = ParamSpec("Given")
Result = TypeVar("Result")


def in_fresh_process(function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """What a function of a module gives, called in a new process; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def working_memory(start: Callable[[], Round], device: torch.device, rounds: int = ROUNDS) -> int | None:
    """Bytes at the peak of some rounds beyond what this process, or its part of the GPU, held before.

    Args:
        start: makes what a round needs (optimizer, average, input), which counts, and gives the round.
        device: whose memory is meant.
        rounds: how many are done.

    Returns:
        None where the system does not say (no Linux, no GPU).
    """
    gc.collect()
    cuda = device.type == "cuda"
    if not cuda and not STATUS.is_file():
        return None
    if cuda:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            CLEAR.write_text("5")  # the highest so far is forgotten, where the system lets a process do that
        before = _status("VmHWM")
    work = start()
    for _ in range(rounds):
        work()
    synchronizer(device)()
    return (torch.cuda.max_memory_allocated(device) if cuda else _status("VmHWM")) - before


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
