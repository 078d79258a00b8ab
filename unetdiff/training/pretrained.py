"""The directory of `model.pretrained` with its weights, and the parts of a run that are read from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetdiff.config.pretrained import facts_directory, is_hub_name
from unetdiff.diffusion.components import downloaded
from unetdiff.diffusion.scheduler_file import CONFIG, load_scheduler

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig


def pretrained_directory(config: RunConfig) -> Path | None:
    """The directory of the pretrained model, downloaded if it is on the Hub; None without one.

    Raises:
        UserError: it does not exist, or cannot be downloaded.
    """
    name = config.model.pretrained
    if name is None:
        return None
    directory = facts_directory(config)
    if is_hub_name(name) and directory.parent != Path(config.training.output_dir):
        return downloaded(name, config.model.revision)
    return directory


def component_path(config: RunConfig, value: str) -> str:
    """Where the autoencoder or text encoder of a key is: that of the pretrained model, or the key's own value."""
    directory = pretrained_directory(config) if value == config.model.pretrained else None
    return value if directory is None else str(directory)


def pretrained_scheduler(config: RunConfig) -> Any:
    """The pretrained model's scheduler, with all of its settings; None: it has none."""
    directory = pretrained_directory(config)
    if directory is None or not (directory / "scheduler" / CONFIG).is_file():
        return None
    return load_scheduler(directory / "scheduler", strict=False)
