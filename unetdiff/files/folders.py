"""Listings of folders, sorted and without hidden files, and paths inside a folder."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from unetdiff.errors import FileError, printable

JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Names that operating systems add to folders, in lower case; hidden as names that begin with a dot are."""


def cache_folder(name: str) -> Path:
    """A folder in the user's cache folder, `unetdiff/NAME`; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unetdiff" / name


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left out of every listing: `.ipynb_checkpoints`, `._0.png`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in JUNK


def entries(folder: str | Path) -> list[Path]:
    """The files and folders in a folder, sorted by name, without hidden ones.

    Raises:
        FileError: it does not exist, is not a folder or cannot be read, or a name is not valid UTF-8.
    """
    folder = Path(folder)
    try:
        names = sorted(name for name in os.listdir(folder) if not is_hidden(name))
    except OSError as error:
        raise FileError.from_os_error(folder, error, "Give a folder that can be read.") from None
    for name in names:
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):  # Python's form of undecodable bytes
            raise FileError.of(folder / printable(name), "its name is not valid UTF-8", "Rename the file.")
    return [folder / name for name in names]


def names_in(folder: str | Path) -> list[str]:
    """The names in a folder, sorted, hidden ones too: for folders of our own. Errors as of `entries`."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise FileError.from_os_error(folder, error, "Give a folder that can be read.") from None


def folders_in(folder: str | Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones. Errors as of `entries`."""
    return [path for path in entries(folder) if path.is_dir()]


def files_in(
    folder: str | Path,
    suffixes: Collection[str] = (),
    recursive: bool = False,
    skip: Callable[[Path], bool] | None = None,
) -> list[Path]:
    """The files in a folder, sorted, without hidden ones; broken links too, so that whoever reads them names them.

    Args:
        folder: the folder.
        suffixes: in lower case, with their dot; files with others are left out. Empty: all files.
        recursive: include the files of its folders, at any depth; links to folders are not followed twice.
        skip: folders in it that are left out.

    Raises:
        FileError: as of `entries`, for any of the folders.
    """
    found = _walk(Path(folder), set(), skip) if recursive else (path for path in entries(folder) if _is_file(path))
    return [path for path in found if not suffixes or path.suffix.lower() in suffixes]


def is_started_run(folder: Path) -> bool:
    """Whether a training has begun in a folder: it has a config, and checkpoints or metrics."""
    begun = (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file()
    return begun and (folder / "config.yaml").is_file()


def _walk(folder: Path, seen: set[tuple[int, int]], skip: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    status = folder.stat() if folder.exists() else None
    if status is not None:
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            return
        seen.add((status.st_dev, status.st_ino))
    for path in entries(folder):
        if path.is_dir():
            if skip is None or not skip(path):
                yield from _walk(path, seen, skip)
        elif _is_file(path):
            yield path


def _is_file(path: Path) -> bool:
    """Whether it is a regular file, or a link that leads nowhere."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def matching(pattern: str) -> list[Path]:
    """The files that match a glob pattern (`**`: folders at any depth), sorted, without hidden ones.

    A file that is reached again through a link to a folder is listed once.

    Raises:
        FileError: a folder that cannot be read.
    """
    try:
        names = sorted(glob.glob(pattern, recursive=True), key=lambda name: (name.count(os.sep), name))
    except (OSError, ValueError, RecursionError, re.error) as error:
        raise FileError.from_os_error(pattern, error, "Give a path or a quoted glob.") from None
    found: dict[tuple[str, str], Path] = {}
    shown = {part for part in Path(pattern).parts if is_hidden(part)}
    for path in map(Path, names):
        if path.is_file() and not any(is_hidden(part) and part not in shown for part in path.parts if part != ".."):
            found.setdefault((os.path.realpath(path.parent), path.name), path)
    return sorted(found.values())


def inside(root: str | Path, name: str | Path, links: bool = False) -> Path:
    """The path of `name` in `root`, for a name that comes from a file of a dataset.

    Args:
        root: the folder.
        name: a relative path.
        links: allow links to elsewhere, as the folders of Hugging Face's cache hold; whoever can make a link can read
            what it points to.

    Raises:
        FileError: it leads out of `root` (an absolute path, "..", a link to elsewhere), or it is not a valid path.
    """
    root, text = Path(root), str(name)
    if not text or "\0" in text:
        raise FileError.of(root, f"the name '{printable(text)}' is not a valid path", "Correct it.")
    path = root / text
    leaves = os.path.isabs(text) or ".." in Path(text).parts
    if leaves or not (links or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))):
        raise FileError.of(root, f"'{printable(text)}' leads out of this folder", "Use paths inside it.")
    return path


def is_there(path: str | Path) -> bool:
    """Whether anything has this path, a pipe or a broken link too: what cannot be read is not taken for missing."""
    return os.path.lexists(path)


def regular_file(path: str | Path, remedy: str = "") -> Path:
    """The path, checked to be a regular file (a named pipe would block the reader).

    Raises:
        FileError: it does not exist, or is a folder, a pipe or a device.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise FileError.from_os_error(path, error, remedy) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise FileError.of(path, f"is {kind}", remedy or "Give a file.")
    return path


def size_of(path: str | Path) -> int:
    """Size of a regular file in bytes. Errors as of `regular_file`."""
    return regular_file(path).stat().st_size
