"""Where a run's weights start from: `training.init_from`, read once, when a run has no checkpoint to go on from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.load import load_conditioner
from unetdiff.errors import UserError
from unetdiff.export.convert.from_diffusers import CLASSES
from unetdiff.models import loading
from unetdiff.models.param_counts import TIME_PARAMS
from unetdiff.models.transfer import transfer
from unetdiff.models.unet import UNet
from unetdiff.training.checkpoints import model_directory
from unetdiff.training.tasks.base import Task

KEY = "training.init_from"


@dataclass(frozen=True)
class Share:
    """Some of a network's tensors."""

    tensors: int
    parameters: int
    """Numbers in those that are trained."""
    parts: list[str]
    """What they belong to: "backbone", "time embedding", "attention", "segmentation head", "diffusion head"."""

    def __str__(self) -> str:
        return f"{self.tensors} tensors, {self.parameters:,} parameters"


@dataclass(frozen=True)
class Start:
    """What a run's network took from another one."""

    network: str
    """Directory of the network that was read."""
    weights: str
    """A hash of its weights, which may be others later on."""
    taken: Share
    fresh: Share
    """New in this run."""
    left_out: Share
    """In the other network alone, or in a head of another size."""
    folded: bool
    """The other network's time embedding at timestep 0 is in this one's convolutions and norms."""
    conditioner: str | None
    """ "taken", "fresh" (of another kind, or for other conditions), or None where nothing is told."""

    def facts(self) -> dict[str, Any]:
        """For summary.json."""
        return asdict(self)

    def sentence(self) -> str:
        """The line that a run starts with."""
        others = [("fresh", self.fresh), ("left out", self.left_out)]
        told = [f"{what}: {', '.join(share.parts)} ({share})" for what, share in others if share.tensors]
        told += ["its time embedding is folded at timestep 0"] if self.folded else []
        told += [f"conditioner {self.conditioner}"] if self.conditioner else []
        return "; ".join([f"starts from {self.network}: {self.taken} taken", *told])


def start_from(task: Task, path: str | Path) -> Start:
    """Start a task's network from the weights of another, and its conditioner where that says the same.

    Args:
        task: with its fresh start.
        path: a run directory (its best weights), a model directory, or a directory of a diffusers U-Net or pipeline.

    Raises:
        UserError: no network there, a damaged one, or one of another backbone, by the first key that differs.
    """
    directory, source = read_network(path)
    moved = transfer(source, task.unet, str(path))
    return Start(
        str(directory),
        loading.fingerprint(directory),
        _share(moved.taken, task.unet),
        _share(moved.fresh, task.unet),
        _share(moved.left_out, source),
        moved.folded,
        _start_conditioner(task, directory),
    )


def read_network(path: str | Path) -> tuple[Path, UNet]:
    """The network of a run directory, a model directory, or of diffusers; and the directory that it lies in."""
    try:
        directory = network_directory(Path(path))
        foreign = loading.read_json(directory / "config.json").get("_class_name") in CLASSES
        return directory, UNet.from_diffusers(directory) if foreign else UNet.from_pretrained(directory)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None


def network_directory(path: Path) -> Path:
    """Where the network lies that a path means; UserError where there is none."""
    return path if (path / "config.json").is_file() else model_directory(path) / "unet"


def _share(names: list[str], network: UNet) -> Share:
    parameters = dict(network.named_parameters())
    parts = list(dict.fromkeys(_part(name) for name in names))
    return Share(len(names), sum(parameters[name].numel() for name in names if name in parameters), parts)


def _part(name: str) -> str:
    if name.startswith("heads."):
        return f"{name.split('.')[1]} head"
    if any(mark in name for mark in TIME_PARAMS):
        return "time embedding"
    return "attention" if "attention" in name else "backbone"


def _start_conditioner(task: Task, network: Path) -> str | None:
    """Give a task's conditioner the weights of the one beside a network, where both say the same in the same way."""
    conditioner, directory = task.trainable_modules().get("conditioner"), network.parent / "conditioner"
    if not isinstance(conditioner, Conditioner):
        return None
    if not directory.is_dir():
        return "fresh"
    source = load_conditioner(directory)
    ours, theirs = (loading.plain(one.config) for one in (conditioner, source))
    if type(source) is not type(conditioner) or ours != theirs:
        return "fresh"
    conditioner.load_state_dict(source.state_dict())
    return "taken"
