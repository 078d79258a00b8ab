"""The most memory that a process, or its part of a GPU, held at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak(device: torch.device) -> bool:
    """Count the highest anew from here on; False where the system does not let a process do that (some containers)."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # nothing was held there yet
            torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device: torch.device) -> int | None:
    """Bytes at the highest since `forget_peak`: of torch's tensors on a GPU, else of the whole process (Linux' VmHWM).

    What a process freed before and did not give back to the system counts in it, as does an earlier peak that could not
    be forgotten. None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not STATUS.is_file():
        return None
    lines = STATUS.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
