"""The files of a folder that can be a dataset: a project's environments, packages and runs are left out."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from unetdiff.files.folders import files_in, folders_in, is_started_run
from unetdiff.files.images import SUFFIXES

STRAY = frozenset({"site-packages", "node_modules", "__pycache__"})
"""Names of folders of packages."""
DATA = SUFFIXES | {".parquet"}


def is_stray(folder: Path) -> bool:
    """Whether a folder holds a virtual environment, packages, or a run of ours."""
    is_environment = (folder / "pyvenv.cfg").is_file() or (folder / "conda-meta").is_dir()
    return folder.name in STRAY or is_environment or is_started_run(folder)


def dataset_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files of a folder, at any depth, without hidden and stray ones. Errors as of `files_in`."""
    return files_in(folder, suffixes, recursive=True, skip=is_stray)


def dataset_folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden and stray ones. Errors as of `folders_in`."""
    return [one for one in folders_in(folder) if not is_stray(one)]


def stray_folders(folder: Path) -> list[Path]:
    """The stray folders in a folder, at any depth, that hold images or tables."""
    found: list[Path] = []

    def note(one: Path) -> bool:
        if is_stray(one):
            found.append(one)
        return is_stray(one)

    files_in(folder, DATA, recursive=True, skip=note)
    return [one for one in found if files_in(one, DATA, recursive=True)]


def common_folder(folder: Path) -> Path:
    """The deepest folder that holds all images and tables of a folder."""
    parents = [file.parent for file in dataset_files(folder, DATA)]
    return Path(os.path.commonpath(parents)) if parents else folder
