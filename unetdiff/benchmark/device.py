"""The device of a benchmark, and a description of the machine."""

from __future__ import annotations

import os
from typing import Any

import torch

from unetdiff.config.training import TrainingConfig
from unetdiff.errors import UserError
from unetdiff.training import runtime


def select_device(name: str | None) -> torch.device:
    """The device that training uses here, or the named one ("cpu", "cuda").

    "cpu" hides the GPUs, also from the subprocesses that measure memory. Call it before anything else selects a device,
    because a process keeps its first.

    Raises:
        UserError: no such device.
    """
    if name == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    device = runtime.build_accelerator(TrainingConfig()).device
    if name not in (None, device.type):
        raise UserError(f"--device={name}: must be {device.type}, the only device torch {torch.__version__} sees here.")
    return device


def machine_info() -> dict[str, Any]:
    """Device, threads, default precision and versions, to report with every result."""
    return runtime.facts(runtime.build_accelerator(TrainingConfig()))
