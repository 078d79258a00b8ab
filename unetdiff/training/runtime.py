"""Precision, the Accelerator, and the description of the machine that is stored with results."""

from __future__ import annotations

import atexit
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DataLoaderConfiguration

from unetdiff.config.training import TrainingConfig
from unetdiff.errors import config_error
from unetdiff.kernels.allocator import keep_freed_memory

WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""The number of processes in the environment of torchrun and of MPI's launchers."""
PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "safetensors", "numpy")


def precision(requested: str, device: str | None = None) -> str:
    """ "auto" resolved: "bf16" where the device is fast at it, else "no" (float32).

    device: device type; None: "cuda" if available, else "cpu".
    """
    if requested != "auto":
        return requested
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cuda", "cpu"):
        return "no"
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def precision_name(precision: str) -> str:
    """The usual name of a precision: Accelerate calls float32 "no"."""
    return "float32" if precision == "no" else precision


def autocast_dtype(requested: str = "auto", device: str | None = None) -> torch.dtype | None:
    """The autocast dtype of a pipeline: bfloat16 where `precision` is "bf16", else None."""
    return torch.bfloat16 if precision(requested, device) == "bf16" else None


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """The one Accelerator of a run; the state of an earlier run in this process (its precision) is reset.

    Raises:
        UserError: float16 without a GPU, or a launcher that started another number of processes.
    """
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise config_error("training.mixed_precision", "fp16", "auto, bf16 or no without a GPU")
    launched = next((int(os.environ[name]) for name in WORLD_SIZES if name in os.environ), 1)
    AcceleratorState._reset_state()
    if launched > 1 and not dist.is_initialized():
        PartialState._reset_state()
        atexit.register(_leave_process_group)  # not after a run: a group cannot be formed twice at one store
    keep_freed_memory()
    accelerator = Accelerator(
        # Accelerate starts gloo only for this flag: torchrun's processes would each train alone
        cpu=launched > 1 and not torch.accelerator.is_available(),
        mixed_precision=precision(config.mixed_precision),
        dataloader_config=DataLoaderConfiguration(),
        step_scheduler_with_optimizer=False,
    )
    if accelerator.num_processes != launched:
        remedy = "Start them with torchrun or accelerate launch, or unset WORLD_SIZE, RANK and LOCAL_RANK."
        raise config_error("WORLD_SIZE", launched, f"{accelerator.num_processes}, the processes that train", remedy)
    return accelerator


def _leave_process_group() -> None:
    """Left open, gloo may abort at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def processes_text(accelerator: Accelerator) -> str:
    """ ", 4 processes on 2 machines (gloo, MULTI_CPU)", for the headline of a run; "" for one process."""
    count = accelerator.num_processes
    if count == 1:
        return ""
    local, nodes = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("SLURM_NNODES")  # torchrun's, or srun's
    machines = -(-count // int(local)) if local else int(nodes) if nodes else None
    where = "" if machines is None else f" on {machines} machine{'' if machines == 1 else 's'}"
    backend = f"{dist.get_backend()}, " if dist.is_initialized() else ""
    return f", {count} processes{where} ({backend}{accelerator.distributed_type.value})"


def facts(accelerator: Accelerator) -> dict[str, Any]:
    """Device, threads, precision and versions, for summary.json."""
    cuda = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": precision_name(accelerator.mixed_precision),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
    }
