"""The inputs of `unetdiff predict`: files, folders, globs and standard input, and where the output of each goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unetdiff.errors import FileError, UserError, printable
from unetdiff.files.folders import files_in, matching, regular_file
from unetdiff.files.images import SUFFIXES
from unetdiff.files.texts import MAX_BYTES, read_start
from unetdiff.files.writing import file_errors

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv"})
STDIN = "-"
PACKET, SYNC = 188, 0x47
"""Size and first byte of the packets of an MPEG transport stream (.ts)."""

Source = tuple[Path | bytes, Path]
"""A file (or an image's bytes) and its output path, relative and without suffix."""
Masks = Callable[[Path], set[str]]
"""The masks in a folder that is searched, as real paths."""


def no_masks(folder: Path) -> set[str]:
    """The `Masks` of a model without a dataset of masks."""
    return set()


def masks_of_run(model: Path) -> Masks:
    """The masks of a run's dataset, where it lies and in a folder of the same layout; `no_masks` without its config.

    Args:
        model: the run's model directory.
    """
    from unetdiff.config.reading import from_yaml
    from unetdiff.data.masks.mask_files import masks_in_layout

    try:
        data = from_yaml(model.parent / "config.yaml").data
    except UserError:
        return no_masks
    return lambda folder: masks_in_layout(data, (data.root, folder))


def list_sources(
    inputs: Sequence[str], listed: bool = False, skip: Sequence[Path] = (), masks: Masks = no_masks
) -> list[Source]:
    """The files of all inputs; "-" is an image on standard input or, with `listed`, a list of inputs, one per line.

    Args:
        inputs: files, folders, globs, "-".
        listed: whether standard input is a list.
        skip: folders that are left out of searches: those of the output.
        masks: the masks of the model's dataset, left out of searches of a folder that holds more.

    Raises:
        UserError: an input without a file, or standard input that cannot be read.
    """
    if STDIN not in inputs:
        if listed:
            raise UserError("--list: an input must be -. Give - for the list on standard input.")
        return list(list_images(inputs, skip, masks))
    if not listed:
        if len(inputs) > 1:
            raise UserError("-: must be the only input. Give files, or a list on standard input with --list.")
        return [(_standard_input(), Path("stdin"))]
    try:
        lines = [line for line in _standard_input().decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError("-: the list on standard input must be UTF-8. Convert it.") from None
    expanded = [path for entry in inputs for path in (lines if entry == STDIN else [entry])]
    if not expanded:
        raise UserError("-: the list on standard input is empty. Give one input per line.")
    return list(list_images(expanded, skip, masks))


def list_images(inputs: Sequence[str], skip: Sequence[Path] = (), masks: Masks = no_masks) -> list[tuple[Path, Path]]:
    """(image or video, output path without suffix) of all inputs; folders are searched recursively.

    Hidden files, folders with the name of an image, and text files with a video's suffix (TypeScript's .ts) are left
    out. Repeated names are numbered ("street-2"), so that no mask overwrites another.

    Args:
        inputs: files, folders and globs.
        skip: folders that are left out of searches.
        masks: as of `list_sources`.

    Raises:
        UserError: an input without a file, a pipe or device, or a folder that cannot be read.
    """
    stems: dict[Path, Path] = {}
    skipped = [Path(os.path.realpath(folder)) for folder in skip]
    for entry in inputs:
        with file_errors(entry):
            matches = _matches(entry, skipped, masks)
        if not matches:
            raise FileError.of(entry, "no image or video found", "Give an image, a video, a folder or a quoted glob.")
        stems |= {file: stem for file, stem in matches if file not in stems}
    pairs: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    for file, stem in stems.items():
        number, name = 1, stem.name
        while stem in taken:
            number += 1
            stem = stem.with_name(f"{name}-{number}")
        taken.add(stem)
        pairs.append((file, stem))
    return pairs


def is_video(source: Path | bytes) -> bool:
    """Whether a file has a video's suffix."""
    return isinstance(source, Path) and source.suffix.lower() in VIDEO_SUFFIXES


def _matches(entry: str, skipped: Sequence[Path], masks: Masks) -> list[tuple[Path, Path]]:
    """The files of one input and their output paths."""
    path = Path(entry)
    if path.is_dir():
        files = files_in(path, SUFFIXES | VIDEO_SUFFIXES, recursive=True)
        found = _without_masks(path, _searched(files, skipped), masks(path))
        return [(file, file.relative_to(path).with_suffix("")) for file in found]
    if path.exists():
        if not _is_media(regular_file(path)):
            raise FileError.of(path, "must be a video (got a file with a video's suffix and other content)")
        return [(path, Path(path.stem))]
    files = matching(entry)
    if path.name in ("*", "**"):
        files = [file for file in files if file.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES]
    return [(file, Path(file.stem)) for file in _searched(files, skipped)]


def _searched(files: Sequence[Path], skipped: Sequence[Path]) -> list[Path]:
    """The images and videos of a search, without earlier output; names what is left out for its content."""
    kept = []
    for file in files:
        if any(Path(os.path.realpath(file)).is_relative_to(folder) for folder in skipped):
            continue
        if _is_media(file):
            kept.append(file)
        else:
            print(f"unetdiff: {printable(str(file))}: skipped, not a video despite its suffix.", file=sys.stderr)
    return kept


def _without_masks(folder: Path, files: list[Path], masks: set[str]) -> list[Path]:
    """The files of a folder that are not the dataset's masks, and says how many are; all of them where all are."""
    kept = [file for file in files if os.path.realpath(file) not in masks]
    if not kept or len(kept) == len(files):
        return files
    left = [file for file in files if file not in set(kept)]
    where = printable(os.path.commonpath([file.parent for file in left]))
    print(
        f"unetdiff: {printable(str(folder))}: {len(left)} masks of the dataset left out ({where}).",
        file=sys.stderr,
    )
    return kept


def _is_media(file: Path) -> bool:
    """False for a .ts file that is not a transport stream, but TypeScript or a translation, say."""
    if file.suffix.lower() != ".ts":
        return True
    start = read_start(file, PACKET + 1)
    return len(start) > PACKET and start[0] == SYNC and start[PACKET] == SYNC


def _standard_input() -> bytes:
    """All of standard input.

    Raises:
        UserError: it is closed, or larger than `MAX_BYTES`.
    """
    if sys.stdin is None:
        raise UserError("-: standard input is closed. Give files.")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"-: standard input must be at most {MAX_BYTES:,} bytes. Give files.")
    return data
