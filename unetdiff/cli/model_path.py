"""A command's model: a run or model directory, or OWNER/NAME on the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path

from unetdiff.errors import UserError

HELP = "a run directory, a model directory, or OWNER/NAME on the Hub"


def local_model(path: Path, option: str = "PATH") -> Path:
    """A path as it is, checked to be of a model before anything slow is imported; the directory of a model on the Hub,
    downloaded if it is not in the Hub's cache. Weights that were not validated are named on standard error.

    Args:
        path: from the command line.
        option: its name, for messages.

    Raises:
        UserError: the path is not of a model, OWNER/NAME is neither a directory here nor a model on the Hub, or the
            Hub cannot be reached.
    """
    from unetdiff.config.model_directory import model_directory

    directory = local_directory(path, option)
    if directory == path:
        note = unvalidated(model_directory(path))
        if note:
            print(f"unetdiff: {note}", file=sys.stderr)
    return directory


def local_directory(path: Path, option: str = "PATH") -> Path:
    """As `local_model`, of a path that exists, with a model in it or not (of a run that has not saved one yet)."""
    from unetdiff.config.model_directory import no_model

    if path.exists():
        return path
    if not is_on_hub(path):
        raise no_model(path)
    from unetdiff.config.pretrained import HUB_PATTERNS
    from unetdiff.files import hub

    try:
        hub.resolved(str(path), HUB_PATTERNS)  # what is not there is said before diffusers is imported
        from unetdiff.diffusion.components import downloaded

        return downloaded(str(path))
    except UserError as error:
        raise UserError(f"{option}={error}") from None


def is_on_hub(path: Path) -> bool:
    """Whether a path that does not exist can be OWNER/NAME: a folder OWNER with runs is one of this machine."""
    from unetdiff.config.model_directory import is_run
    from unetdiff.config.pretrained import is_hub_name
    from unetdiff.files.folders import folders_in

    return is_hub_name(str(path)) and not (path.parent.is_dir() and any(map(is_run, folders_in(path.parent))))


def unvalidated(directory: Path) -> str:
    """ "runs/cells: weights of step 51 of 712, not validated" of a run's `latest`; "" of other model directories."""
    from unetdiff.files.folders import files_in
    from unetdiff.training.progress import STATE, read_progress

    run = directory.parent
    if directory.name != "latest" or not (run / "checkpoints").is_dir():
        return ""
    states = [file for file in files_in(run / "checkpoints", {".json"}, recursive=True) if file.name == STATE]
    if not states:
        return ""
    try:
        progress = read_progress(states[-1].parent)
    except UserError:  # of another version; the weights may be read all the same
        return ""
    total = "" if progress.planned is None else f" of {progress.planned}"
    state = "not validated" if not progress.validated else "without a best validation"
    return f"{run}: weights of step {progress.step}{total}, {state}"


def output_folder(path: Path) -> Path:
    """The folder of what a command writes next to a model: the model's own; of one on the Hub, OWNER--NAME here."""
    from unetdiff.config.pretrained import is_hub_name

    return Path(str(path).replace("/", "--")) if is_hub_name(str(path)) else path
