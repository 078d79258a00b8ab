"""The configs that come with the package, found by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import unetdiff
from unetdiff.config.schema import Task
from unetdiff.errors import FileError, UserError, did_you_mean
from unetdiff.files.folders import files_in, folders_in
from unetdiff.files.texts import read_text

YAML = ".yaml"
OWN_DATA, EMBEDDED = "default", "scenes"
"""Names of the configs of a run without one: on other data, and on the embedded scenes."""


def folder() -> Path:
    """The folder of the configs: in the package, or next to it in a checkout."""
    package = Path(unetdiff.__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def shipped_configs() -> Iterator[tuple[str, Path]]:
    """("segmentation/scenes", file) of every config, by task."""
    for place in folders_in(folder()):
        for path in files_in(place, {YAML}):
            yield f"{place.name}/{path.stem}", path


def title_of(path: Path) -> str:
    """The first comment line of a config, its first sentence."""
    first = next(iter(read_text(path).splitlines()), "")
    return re.split(r"(?<!al)\. |:$", first.removeprefix("#").strip())[0].rstrip(".")


def find_config(name: str, task: str | None = None) -> Path:
    """The file that a word of the command line means: a file, or a shipped config ("scenes", "joint/scenes").

    Args:
        name: a path or a name; a file goes first.
        task: of a name without one.

    Raises:
        UserError: a name of none, with the nearest; or that of another task.
    """
    if Path(name).is_file():
        return Path(name)
    configs = dict(shipped_configs())
    short = name.removeprefix("configs/").removesuffix(YAML)
    for full in (short, f"{task}/{short}"):
        if full in configs:
            return configs[full]
    if Path(name).suffix or name.startswith((".", "/", "~")) or Path(name).exists():
        return Path(name)  # meant as a file
    own = [full.partition("/")[2] if full.startswith(f"{task}/") else full for full in configs]
    same = [full for full in configs if full.partition("/")[2] == short]
    if same:
        other = same[0].partition("/")[0]
        raise UserError(
            f"config {name}: must be of task {task} (got one of {other}). Run `unetdiff train {other} {short}`."
        )
    remedy = f"{did_you_mean(short, own)} `unetdiff configs` lists those of the package.".lstrip()
    raise FileError.of(f"config {name}", "must be a file or the name of a config", remedy)


def default_config(task: Task, has_own_data: bool) -> Path | None:
    """The config of a run without one: the task's on the embedded scenes, or a segmenter's on other data."""
    if not has_own_data:
        return folder() / task / f"{EMBEDDED}{YAML}"
    return folder() / task / f"{OWN_DATA}{YAML}" if task == "segmentation" else None
