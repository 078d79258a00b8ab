"""Peak memory of the process, or of its tensors on a GPU."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from unetdiff.files.texts import read_lines
from unetdiff.files.writing import append_text

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> bool:
    """Reset the peak; False where the system does not allow it (some containers)."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # nothing was allocated there yet
            torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        append_text(CLEAR, "5")
    except OSError:
        return False
    return True


def peak_bytes(device: torch.device) -> int | None:
    """Peak in bytes since `reset_peak`: torch's allocations on a GPU, else resident memory of the process (VmHWM).

    Resident memory includes what was freed but not returned to the system, and an earlier peak that could not be reset.
    None where the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not STATUS.is_file():
        return None
    lines = read_lines(STATUS)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
