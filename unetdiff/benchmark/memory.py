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
from typing import ParamSpec, TypeVar

import torch

from unetdiff.benchmark.timing import Round, synchronizer
from unetdiff.training.peak import forget_peak, peak_bytes

ROUNDS = 2  # the first training step makes the optimizer's state, the second has it beside the activations

Given = ParamSpec("Given")
Result = TypeVar("Result")


def run_in_subprocess(function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """What a function of a module gives, called in a new process; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def release_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more: on a GPU torch would keep it from other processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_working_memory(start: Callable[[], Round], device: torch.device, rounds: int = ROUNDS) -> int | None:
    """Bytes at the peak of some rounds beyond what this process, or its part of the GPU, held before.

    Args:
        start: makes what a round needs (optimizer, average, input), which counts, and gives the round.
        device: whose memory is meant.
        rounds: how many are done.

    Returns:
        None where the system does not say (no Linux, no GPU).
    """
    gc.collect()
    forget_peak(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_bytes(device)
    work = start()
    for _ in range(rounds):
        work()
    synchronizer(device)()
    peak = peak_bytes(device)
    return None if before is None or peak is None else peak - before
