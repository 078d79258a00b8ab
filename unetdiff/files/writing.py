"""Atomic files and directories, outputs checked before the work, and leftovers of killed processes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files.folders import regular_file

WRITING, OLD = ".writing-", ".old-"
"""Prefixes of what is being written, and of what is being replaced."""
MAX_NAME = 255
"""Bytes of a file name, on every common file system."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` fills a path aside, which then takes the place of `path`.

    Raises:
        OSError: e.g. a full disk, or a device or pipe in its place; what was there stays, and nothing is left aside.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EEXIST, "is not a regular file", str(path))
    aside = path.with_name(f"{WRITING}{path.name}")
    if len(os.fsencode(aside.name)) > MAX_NAME:  # the name itself may just fit
        aside = path.with_name(f"{WRITING}{hashlib.sha256(os.fsencode(path.name)).hexdigest()}")
    try:
        with named_errors(path):
            write(aside)
            os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically. Errors as of `write_file`."""
    write_file(path, lambda aside: aside.write_text(text, encoding="utf-8", newline="\n"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically. Errors as of `write_file`."""
    write_file(path, lambda aside: aside.write_bytes(data))


def append_text(path: Path, text: str) -> None:
    """Append to a text file in UTF-8; a killed process may leave the last line incomplete.

    Raises:
        OSError: e.g. a full disk.
    """
    with named_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def make_folder(path: Path) -> Path:
    """Create a folder and those above it; returns it.

    Raises:
        OSError: e.g. a file has its name.
    """
    path.mkdir(parents=True, exist_ok=True)
    return path


def move(source: Path, target: Path) -> None:
    """Give a file or a folder another path on the same disk, atomically.

    Raises:
        OSError: e.g. `target` is a folder with files.
    """
    os.replace(source, target)


def replace_directory(target: Path, write: Callable[[Path], object]) -> Path:
    """Replace `target` by a directory that `write` fills: completely, or not at all on an error.

    Its files are on the disk before it takes the place of the old one. A kill may leave `.writing-NAME` or `.old-NAME`:
    `restore_swapped` and `sweep` mend that.

    Raises:
        OSError: e.g. a full disk; the old directory stays.
    """
    aside, old = target.with_name(f"{WRITING}{target.name}"), target.with_name(f"{OLD}{target.name}")
    remove_tree(aside)
    try:
        aside.mkdir(parents=True)
        write(aside)
        for file in aside.rglob("*"):
            if file.is_file():
                _fsync(file)
        remove_tree(old)
        if target.exists():
            target.rename(old)
        aside.rename(target)
    except BaseException:
        with suppress(OSError):
            remove_tree(aside)
            restore_swapped(target)
        raise
    _fsync(target.parent)
    remove_tree(old)
    return target


def write_into_directory(directory: Path, write: Callable[[Path], object]) -> None:
    """Write files into a directory, which may hold others: `write` fills a folder aside; then each is moved.

    Raises:
        OSError: e.g. a full disk; no file is then half written.
    """
    aside = directory / f"{WRITING}{uuid.uuid4().hex}"
    try:
        aside.mkdir(parents=True)
        write(aside)
        for path in sorted(aside.iterdir()):
            os.replace(path, directory / path.name)
    finally:
        with suppress(OSError):
            remove_tree(aside)


def sync(path: Path) -> None:
    """Wait until a file is on the disk; nothing if it is missing.

    Raises:
        OSError: the disk failed.
    """
    if path.is_file():
        with named_errors(path):
            _fsync(path)


def delete_whole(path: Path) -> None:
    """Delete a file or directory so that a kill leaves it whole or as a leftover that `sweep` deletes.

    Raises:
        OSError: e.g. no permission.
    """
    aside = path.with_name(f"{WRITING}{path.name}")
    remove_tree(aside)
    with suppress(FileNotFoundError):
        path.rename(aside)
    remove_tree(aside)


def restore_swapped(target: Path) -> None:
    """Finish a `replace_directory` that was killed between its two renames: the old directory is put back."""
    old = target.with_name(f"{OLD}{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)


def sweep(folder: Path) -> None:
    """Delete what killed processes left in a run directory: `.writing-*`, and `.old-*`, which is put back first where
    nothing has taken its place."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(OLD):
            restore_swapped(path.with_name(path.name.removeprefix(OLD)))
        if path.name.startswith((OLD, WRITING)):
            remove_tree(path)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's place for temporary files, deleted afterwards.

    Raises:
        FileError: it cannot be created.
    """
    with file_errors(tempfile.gettempdir(), "Set TMPDIR to a folder with room.") as _:
        folder = tempfile.TemporaryDirectory()
    with folder as path:
        yield Path(path)


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files of a folder into another, which may exist.

    Raises:
        OSError: e.g. a full disk.
    """
    try:
        shutil.copytree(source, target, dirs_exist_ok=True)
    except shutil.Error as error:  # a list of (source, target, reason)
        raise OSError(error.args[0][0][2]) from error


def remove_tree(path: Path) -> None:
    """Delete a directory and its content, a file, or a link (not what it points to); nothing if it is missing.

    Raises:
        OSError: e.g. no permission.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_writable(key: str, path: str | Path, folder: bool = False) -> Path:
    """Check, before any work, that an output can be written; nothing is left behind.

    Args:
        key: the option or config key, for the message.
        path: of a file whose directory must exist, or of a folder (created later with those above it).
        folder: whether it is a folder.

    Raises:
        UserError: a missing directory, a file in the place of a folder or the other way round, no permission, a
            read-only file system, a name that is too long.
    """
    path = Path(path)
    try:
        if "\0" in str(path):
            raise ValueError("null byte in the path")
        if path.is_symlink() and not path.exists():
            raise config_error(key, path, "writable (got a broken link)", "Give another path.")
        if path.is_dir() and not folder:
            raise config_error(key, path, "a file (got a folder)", "Give the path of a file.")
        if path.exists() and not folder and not path.is_file():
            raise config_error(key, path, "a regular file (got a device or a pipe)", "Give another path.")
        if path.exists() and folder and not path.is_dir():
            raise config_error(key, path, "a folder (got a file)", "Give another path.")
        if not folder and not path.parent.is_dir():
            raise config_error(key, path, "in an existing directory", f"Create '{path.parent}' first.")
        if path.exists() and not folder and not os.access(path, os.W_OK):
            raise config_error(key, path, "writable (got a read-only file)", "Give another path.")
        place = path if folder else path.parent
        names = ["" if folder else path.name]
        while not place.exists():
            if place.is_symlink():
                raise config_error(key, path, f"in a folder ('{place}' is a link that leads nowhere)")
            names.append(place.name)
            place = place.parent
        if not place.is_dir():
            raise config_error(key, path, f"in a folder ('{place}' is a file)", "Give another path.")
        if max(len(os.fsencode(name)) for name in names) > MAX_NAME:
            raise config_error(key, path, "writable (file name too long)", "Give a shorter name.")
        _probe(place)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise config_error(key, path, f"writable ({reason})", "Give another path.") from None
    return path


def _probe(folder: Path) -> None:
    """Create a file in a folder: one without a name where the system has such, so that a kill leaves nothing."""
    if hasattr(os, "O_TMPFILE"):
        try:
            os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
    probe = folder / f"{WRITING}{uuid.uuid4().hex}"
    with probe.open("xb"):
        pass
    probe.unlink()


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Let an OSError inside the context name the path, where the system names none (a failed write)."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def file_errors(path: str | Path, remedy: str = "") -> Iterator[None]:
    """Turn an OSError inside the context into one line with the path and the remedy.

    Raises:
        FileError: for an OSError; other exceptions pass.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError.from_os_error(error.filename or path, error, remedy) from error


def discard(descriptor: int) -> None:
    """Let an open file descriptor lead nowhere: what is written to it later is dropped without an error.

    Raises:
        OSError: it is not open.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def sha256_of(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits.

    Raises:
        FileError: missing or unreadable.
    """
    with file_errors(path), regular_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
