"""What the machine gives a run: precision, accelerator, and the facts that a result is told with."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration

from unetdiff.errors import config_error
from unetdiff.kernels.allocator import keep_freed_memory
from unetdiff.training.config import TrainingConfig

PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "safetensors", "numpy")


def precision(asked: str, device: str | None = None) -> str:
    """ "auto" as what the machine is fast at: bf16, or no (float32).

    device: the type of the device that is meant; None: a GPU where there is one.
    """
    if asked != "auto":
        return asked
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cuda", "cpu"):
        return "no"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def spoken(chosen: str) -> str:
    """The name of a precision as people say it: Accelerate calls float32 "no"."""
    return "float32" if chosen == "no" else chosen


def autocast_dtype(asked: str = "auto", device: str | None = None) -> torch.dtype | None:
    """What to sample or predict in, for a pipeline's autocast: bfloat16 where `precision` says bf16, else None."""
    return torch.bfloat16 if precision(asked, device) == "bf16" else None


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """The one Accelerator of a run; the state of an earlier run in this process (its precision) is reset.

    Raises:
        UserError: float16 without a GPU.
    """
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise config_error("training.mixed_precision", "fp16", "auto, bf16 or no without a GPU")
    AcceleratorState._reset_state()
    keep_freed_memory()
    return Accelerator(
        mixed_precision=precision(config.mixed_precision),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(),
        step_scheduler_with_optimizer=False,
    )


def facts(accelerator: Accelerator) -> dict[str, Any]:
    """Device, threads, precision and versions, for summary.json."""
    cuda = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": spoken(accelerator.mixed_precision),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
    }
