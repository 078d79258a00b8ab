"""The one device that a benchmark is about."""

from __future__ import annotations

import os
from typing import Any

import torch

from unetdiff.errors import UserError
from unetdiff.training import runtime as machine
from unetdiff.training.config import TrainingConfig


def claim(name: str | None) -> torch.device:
    """The device that training takes here, a GPU where there is one; or the one that is named ("cpu", "cuda").

    For "cpu" the GPUs are hidden, from the processes that measure memory too. To be called before anything else asks
    for a device: a process keeps its first.

    Raises:
        UserError: no GPU where one was asked for.
    """
    if name == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    device = machine.build_accelerator(TrainingConfig()).device
    if name not in (None, device.type):
        raise UserError(
            f"--device: {name!r} cannot be used here (torch {torch.__version__} sees none); use {device.type}"
        )
    return device


def facts() -> dict[str, Any]:
    """What a result is told with: device, threads, the precision that runs have here, versions."""
    told = machine.facts(machine.build_accelerator(TrainingConfig()))
    return told
