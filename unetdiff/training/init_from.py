"""`training.init_from`: initial weights from another network, for a run without a checkpoint to resume from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unetdiff.config.model_directory import model_directory
from unetdiff.diffusion import autoencoders
from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.load import load_conditioner
from unetdiff.diffusion.conditioning.prompt import PromptConditioner
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.processes.base import Process
from unetdiff.diffusion.processes.load import process_of
from unetdiff.diffusion.scheduler_file import CONFIG, load_scheduler
from unetdiff.errors import UserError, config_error
from unetdiff.files.pipeline_parts import part
from unetdiff.models import loading
from unetdiff.models.config import RESIDUAL, RGB
from unetdiff.models.param_counts import TIME_PARAMS
from unetdiff.models.transfer import transfer
from unetdiff.models.unet import UNet
from unetdiff.models.weights_files import fingerprint
from unetdiff.models.widen_input import gray_to_rgb, is_gray, widen_input_
from unetdiff.training.agreement import describe_scheduler, scheduler_difference, scheduler_of
from unetdiff.training.latents import codec_of
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.segmentation import SegmentationTask

KEY = "training.init_from"


@dataclass(frozen=True)
class TensorCount:
    """A group of a network's tensors."""

    tensors: int
    parameters: int
    """Number of trainable values in them."""
    parts: list[str]
    """Parts they belong to: "backbone", "time embedding", "attention", "segmentation head", "diffusion head"."""

    def __str__(self) -> str:
        return f"{self.tensors} tensors, {self.parameters:,} parameters"


@dataclass(frozen=True)
class InitReport:
    """Which tensors of a new network were initialized from a source network."""

    network: str
    """Directory of the source network."""
    weights: str
    """Hash of the source's weights, to notice when they change."""
    loaded: TensorCount
    fresh: TensorCount
    """Randomly initialized."""
    unused: TensorCount
    """Tensors of the source that are missing here, or in a head of a different size."""
    folded: bool
    """The source's time embedding at timestep 0 was folded into convolutions and norms."""
    conditioner: str | None
    """ "loaded", "fresh" (the source has none, or a different one), or None for a task without a conditioner."""
    widened: int = 0
    """Input channels that the source lacks, those of inpainting, which start at zero."""

    def summary(self) -> dict[str, Any]:
        """For summary.json."""
        return asdict(self)

    def __str__(self) -> str:
        """The log line of a run."""
        groups = [("randomly initialized", self.fresh), ("unused", self.unused)]
        notes = [f"{label}: {', '.join(count.parts)} ({count})" for label, count in groups if count.tensors]
        notes += ["time embedding folded at timestep 0"] if self.folded else []
        notes += [f"conditioner: {self.conditioner}"] if self.conditioner else []
        notes += [f"{self.widened} input channels for mask and masked image start at zero"] if self.widened else []
        return "; ".join([f"initialized from {self.network}: {self.loaded} loaded", *notes])


def initialize(task: Task, path: str | Path, key: str = KEY) -> InitReport:
    """Load the weights of another network into a task, and those of its conditioner if both have the same config.

    Args:
        task: with random weights.
        path: a run directory (its best weights), a model directory, or the directory of a diffusers U-Net or pipeline.
        key: the config's key with that path, for messages.

    Raises:
        UserError: no network there, a damaged one, a different backbone (names the first key that differs), or a
            denoiser that was trained with another scheduler, prediction type, autoencoder or form of prompts.
    """
    directory, source = read_network(path, key)
    if Path(path).resolve() != directory.resolve():  # given without its pipeline, a network has no scheduler
        _require_same_scheduler(task, source, directory, Path(path), key)
        _require_same_autoencoder(task, directory, path, key)
        _require_same_prompts(task, directory, path, key)
    if is_gray(source.config) and task.unet.config["in_channels"] == RGB:
        source = gray_to_rgb(source)
    widened = _widen(source, task)
    result = transfer(source, task.unet, str(path), key)
    return InitReport(
        str(directory),
        fingerprint(directory),
        _count(result.copied, task.unet),
        _count(result.initialized, task.unet),
        _count(result.unused, source),
        result.folded,
        _initialize_conditioner(task, directory),
        widened,
    )


def _widen(source: UNet, task: Task) -> int:
    """Give the source the input channels of an inpainting task, if it has the others; their number."""
    conditioner = task.trainable_modules().get("conditioner")
    extra = conditioner.channels if isinstance(conditioner, PromptConditioner) else 0
    channels = task.unet.config["in_channels"]
    if not extra or source.config["in_channels"] != channels - extra or source.config["encoder"]["name"] != RESIDUAL:
        return 0
    widen_input_(source, channels)
    return extra


def _require_same_scheduler(task: Task, source: UNet, directory: Path, path: Path, key: str) -> None:
    """Refuse a denoiser's weights for another objective, or for a segmenter that would see images as it never did."""
    folder = directory.parent / "scheduler"
    if not (folder / CONFIG).is_file() or not source.config["heads"]["diffusion"]:
        return
    theirs, ours = load_scheduler(folder, strict=False), scheduler_of(task)
    if task.unet.config["heads"]["segmentation"]:
        _require_same_timesteps(task, process_of(theirs), f"{key}={path}")
    if ours is None:  # a segmenter of clean images
        return
    difference = scheduler_difference(describe_scheduler(theirs), describe_scheduler(ours))
    if difference is not None:
        raise UserError(
            f"{difference}, as {key}={path} was trained. Set it, or give {directory} to use only the weights."
        )


def _require_same_timesteps(task: Task, process: Process, source: str) -> None:
    """Refuse a denoiser that has not seen images at the timestep and the scale at which a segmenter sees them.

    ddpm: at timestep 0, x_t = x_0 up to a thousandth; flow: at timestep 0, x_t = x_0 exactly. EDM has neither: clean
    images are its limit c_noise = ln(s) / 4 -> -∞, scaled by c_in = 1 / sigma_data, and timestep 0 is that of s = 1.
    """
    process.require_clean_timestep(source)
    last = int(process.at_fraction(torch.tensor(1.0)))
    timesteps = [one.config.timestep for one in task.modules() if isinstance(one, SegmentationTask)]
    if timesteps and timesteps[0] > last:
        constraint = f"at most {last}, the last timestep of {source}"
        raise config_error("segmentation.timestep", timesteps[0], constraint)


def _require_same_autoencoder(task: Task, network: Path, path: str | Path, key: str) -> None:
    """Refuse the weights of a network of another autoencoder's latents."""
    codec, saved = codec_of(task), part(network.parent, "vae")
    if not saved.is_dir() or codec is None:
        return
    source = autoencoders.load_autoencoder(saved, key)
    if autoencoders.fingerprint(source) != autoencoders.fingerprint(codec.vae):
        raise UserError(
            f"latent.vae: must be the autoencoder of {key}={path}, whose latents its network was trained on (got "
            f"another). Set latent.vae={network.parent}, or give {network} to use only the weights."
        )


def _require_same_prompts(task: Task, network: Path, path: str | Path, key: str) -> None:
    """Refuse to put a new projection between a text encoder and the network that was trained on its features."""
    has_prompts = part(network.parent, "text_encoder").is_dir() and not (network.parent / "conditioner").is_dir()
    if has_prompts and isinstance(task.trainable_modules().get("conditioner"), TextConditioner):
        constraint = f"false, as {key}={path} was trained on the text encoder's features themselves"
        remedy = f"Set it, or model.pretrained={path}, or give {network} to use only the weights."
        raise config_error("diffusion.text.projection", True, constraint, remedy)


def read_network(path: str | Path, key: str = KEY) -> tuple[Path, UNet]:
    """The network of a run, model or diffusers directory, and the directory that contains it."""
    try:
        directory = network_directory(Path(path))
        return directory, UNet.from_pretrained(directory)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def network_directory(path: Path) -> Path:
    """The directory of the network at a path; UserError without one."""
    return path if (path / "config.json").is_file() else model_directory(path) / "unet"


def _count(names: list[str], network: UNet) -> TensorCount:
    parameters = dict(network.named_parameters())
    parts = list(dict.fromkeys(_part_of(name) for name in names))
    return TensorCount(len(names), sum(parameters[name].numel() for name in names if name in parameters), parts)


def _part_of(name: str) -> str:
    if name.startswith("heads."):
        return f"{name.split('.')[1]} head"
    if any(mark in name for mark in TIME_PARAMS):
        return "time embedding"
    return "attention" if "attention" in name else "backbone"


def _initialize_conditioner(task: Task, network: Path) -> str | None:
    """Load the conditioner saved next to a network, if class and config are those of the task's."""
    conditioner, directory = task.trainable_modules().get("conditioner"), network.parent / "conditioner"
    if not isinstance(conditioner, Conditioner) or isinstance(conditioner, PromptConditioner):  # it has no weights
        return None
    if not directory.is_dir():
        return "fresh"
    source = load_conditioner(directory)
    if type(source) is not type(conditioner) or loading.plain(source.config) != loading.plain(conditioner.config):
        return "fresh"
    conditioner.load_state_dict(source.state_dict())
    return "loaded"
