"""A command's model: a run or model directory, or OWNER/NAME on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

HELP = "a run directory, a model directory, or OWNER/NAME on the Hub"


def local_model(path: Path, option: str = "PATH") -> Path:
    """A path as it is; the directory of a model on the Hub, downloaded if it is not in the Hub's cache.

    Args:
        path: from the command line.
        option: its name, for messages.

    Raises:
        UserError: OWNER/NAME is neither a directory here nor a model on the Hub, or there is no connection.
    """
    from unetdiff.config.pretrained import is_hub_name

    if not is_hub_name(str(path)):
        return path
    from unetdiff.diffusion.components import downloaded
    from unetdiff.errors import UserError

    try:
        return downloaded(str(path))
    except UserError as error:
        raise UserError(f"{option}={error}") from None


def output_folder(path: Path) -> Path:
    """The folder of what a command writes next to a model: the model's own; of one on the Hub, OWNER--NAME here."""
    from unetdiff.config.pretrained import is_hub_name

    return Path(str(path).replace("/", "--")) if is_hub_name(str(path)) else path
