"""The model directory that a path means, and what a path without a model is instead. Free of torch, so that a command
says so at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from unetdiff.config.pretrained import exported_model
from unetdiff.errors import FileError, UserError, did_you_mean, printable
from unetdiff.files import records
from unetdiff.files.folders import entries, files_in, folders_in, is_started_run, is_there
from unetdiff.files.images import SUFFIXES

CONFIG = "config.yaml"
CONFIG_SUFFIXES = (".yaml", ".yml")
MAX_NAMED, MAX_FOLDERS, MAX_DEPTH = 5, 200, 3
"""Runs that a message names; folders that are searched for them, and how deep."""


def model_directory(path: str | Path) -> Path:
    """Resolve a path to a model directory: a run's `best`, else its `latest`, else the path itself.

    Raises:
        UserError: no model there; says what is there instead.
    """
    path = Path(path)
    exported = exported_model(path)
    if exported is not None:
        return exported
    if is_there(path / "unet" / "config.json"):
        return path
    raise no_model(path)


def is_run(folder: Path) -> bool:
    """Whether a folder is the directory of a run that was started, or of its exported model with its config."""
    return is_started_run(folder) or ((folder / CONFIG).is_file() and exported_model(folder) is not None)


def runs_below(folder: Path) -> list[Path]:
    """The run directories in a folder, at most `MAX_DEPTH` deep; unreadable folders are left out."""
    return list(_runs_below(folder, MAX_DEPTH))


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        folders = folders_in(folder)[:MAX_FOLDERS]
    except FileError:
        return
    for one in folders:
        if is_run(one):
            yield one
        elif depth > 1:
            yield from _runs_below(one, depth - 1)


def no_model(path: Path) -> FileError:
    """The error for a path without a model: it does not exist, or what it is instead, and what to give."""
    if not os.path.lexists(path):
        return FileError.of(path, "does not exist", _meant(path))
    if not path.is_dir():
        return _not_of_file(path)
    run = next((parent for parent in path.absolute().parents if is_run(parent)), None)
    if is_run(path):
        return FileError.of(
            path, "contains no model (no best/unet, latest/unet or unet)", "Has the run completed a validation?"
        )
    if run is not None:
        return FileError.of(path, "is a part of a run, not a model", f"Give the run: {_shown(run, path)}.")
    if runs := runs_below(path):
        return FileError.of(path, "is a folder of runs, not a run", f"Give one of them: {_listed(runs)}.")
    images = _has_images(path)
    kind = "is a folder of images, not a run" if images else "contains no model (no best/unet, latest/unet or unet)"
    return FileError.of(path, kind, _give_run())


def _meant(path: Path) -> str:
    """ "Did you mean runs/cells?", among the runs next to a missing path, else all of its neighbors."""
    parent = path.parent
    if not parent.is_dir():
        return _give_run()
    try:
        neighbors = folders_in(parent)
    except FileError:
        return _give_run()
    runs = {one.name: str(one) for one in neighbors if is_run(one)}
    names = runs or {one.name: str(one) for one in neighbors if exported_model(one) or is_there(one / "unet")}
    near = did_you_mean(path.name, names, f"{printable(str(parent))}/{{}}" if str(parent) != "." else "{}")
    if near or not runs:
        return near or _give_run()
    return f"Runs there: {_listed([Path(run) for run in runs.values()])}."


def _not_of_file(path: Path) -> FileError:
    """The error for a file: a config's run, or how to get one; "is a file" for others."""
    if path.suffix.lower() not in CONFIG_SUFFIXES:
        kind = "is an image, not a run" if path.suffix.lower() in SUFFIXES else "is a file, not a run"
        return FileError.of(path, kind, _give_run())
    if is_run(path.parent):
        return FileError.of(path, "is the config of a run", f"Give the run: {path.parent}.")
    try:
        tree = records.read_yaml(path, "")
        training = tree.get("training") or {}
        output = Path(str(tree.get("training.output_dir") or training.get("output_dir") or ""))
        task = str(tree.get("task") or "TASK")
    except (UserError, AttributeError):
        return FileError.of(path, "is a file, not a run", _give_run())
    if output != Path() and is_run(output):
        return FileError.of(path, "is a config, not a run", f"Give its run: {output}.")
    remedy = f"Train it (unetdiff train {task} {path}), then give its training.output_dir."
    return FileError.of(path, "is a config, not a run", remedy)


def _give_run() -> str:
    """What to give: the runs in the current folder, or how they are made."""
    runs = runs_below(Path("runs")) if Path("runs").is_dir() else []
    if runs:
        return f"Give a run directory, such as {_listed(runs)}."
    return "Give a run directory (the training.output_dir of a config, with best/ or latest/) or a model directory."


def _listed(runs: list[Path]) -> str:
    more = f" and {len(runs) - MAX_NAMED} more" if len(runs) > MAX_NAMED else ""
    return ", ".join(printable(str(run)) for run in runs[:MAX_NAMED]) + more


def _shown(run: Path, path: Path) -> Path:
    """An absolute folder in the form that the path was given in."""
    return run if path.is_absolute() else Path(os.path.relpath(run))


def _has_images(folder: Path) -> bool:
    """Whether a folder, or one of its folders, holds images."""
    try:
        return any(
            item.suffix.lower() in SUFFIXES
            for one in (folder, *folders_in(folder)[:MAX_FOLDERS])
            for item in (files_in(one) if one == folder else entries(one))
        )
    except FileError:
        return False
