"""Peak memory of a workload, measured in a subprocess.

A process that has done other work holds freed memory, which the next workload reuses without asking the system. A
child's `ru_maxrss` (getrusage) starts at its parent's peak; VmHWM in Linux's /proc/self/status starts at zero.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from unetdiff.benchmark.timing import Workload, synchronizer
from unetdiff.training.peak import peak_bytes, reset_peak

ROUNDS = 2  # the optimizer's state is allocated in the first step, and is held with the activations of the second

Args = ParamSpec("Args")
Result = TypeVar("Result")


def run_in_subprocess(function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Call a module-level function in a new process; return its result or raise its exception."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def release_memory(device: torch.device) -> None:
    """Return unreferenced memory to the system, including torch's GPU cache."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_working_memory(start: Callable[[], Workload], device: torch.device, rounds: int = ROUNDS) -> int | None:
    """Peak memory in bytes during some rounds of a workload, beyond what was allocated before.

    Args:
        start: allocates what a round needs (optimizer, EMA, input), which is included, and returns the workload.
        device: the CPU or GPU whose memory is measured.
        rounds: rounds of the workload.

    Returns:
        None where the system does not report it (neither Linux nor a GPU).
    """
    gc.collect()
    reset_peak(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else peak_bytes(device)
    work = start()
    for _ in range(rounds):
        work()
    synchronizer(device)()
    peak = peak_bytes(device)
    return None if before is None or peak is None else peak - before
