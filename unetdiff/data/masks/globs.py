"""Files of a glob pattern, named by what its wildcards match: an image and its mask have the same name."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from unetdiff.errors import FileError, config_error
from unetdiff.files.folders import files_in
from unetdiff.files.images import SUFFIXES

WILDCARDS = re.compile(r"[*?\[]")
_PART = re.compile(r"\*\*|\*|\?|\[!?[^\]]+\]|[^*?\[]+|\[")


def is_glob(pattern: str) -> bool:
    """Whether a text has wildcards."""
    return WILDCARDS.search(pattern) is not None


def named_files(key: str, pattern: str, root: Path, suffixes: Collection[str] = SUFFIXES) -> dict[str, list[Path]]:
    """The files of a folder or glob by name, sorted; names are what the wildcards match, without the suffix.

    A folder stands for all files in it, at any depth; a file (a stack) for itself.
    `leftImg8bit/**/*_leftImg8bit.png` names leftImg8bit/train/aachen/aachen_0_leftImg8bit.png "train/aachen/aachen_0".

    Args:
        key: the config's key, for messages.
        pattern: a folder, a glob or a file, relative to `root` or absolute; `*` and `?` match within a name, `**`
            folders at any depth.
        root: the dataset's folder.
        suffixes: of the files, in lower case.

    Raises:
        UserError: a folder that does not exist, or a pattern that no file matches.
    """
    text = os.path.expanduser(pattern).replace(os.sep, "/").rstrip("/") or "/"
    if (root / text).is_file():
        return {Path(text).stem: [root / text]}
    if not is_glob(text) or "." not in text.rpartition("/")[2].removeprefix("."):
        text += "/**/*.*"
    parts = text.split("/")
    fixed = next(i for i, part in enumerate(parts) if is_glob(part))
    base = root / ("/".join(parts[:fixed]) or ("/" if text.startswith("/") else "."))
    if not base.is_dir():
        raise config_error(key, pattern, f"an existing folder, or a glob of files, in {root} (no {base})")
    expression = re.compile("/".join(_expressions(parts[fixed:])).replace("(?:FOLDERS)/", "((?:[^/]+/)*)"))
    named: dict[str, list[Path]] = {}
    for path in files_in(base, suffixes, recursive="/" in "/".join(parts[fixed:])):
        match = expression.fullmatch(path.relative_to(base).as_posix())
        if match:
            named.setdefault(_name(match), []).append(path)
    if not named:
        raise FileError.of(base, f"no images found ({key}={pattern})", f"Correct {key}, or add images.")
    return dict(sorted(named.items()))


def _expressions(parts: list[str]) -> list[str]:
    """A regular expression per part of a path; a suffix that is a wildcard belongs to no name."""
    expressions = []
    for i, part in enumerate(parts):
        if part == "**":
            expressions.append("(?:FOLDERS)")
            continue
        suffix = ""
        if i == len(parts) - 1 and (match := re.search(r"\.[*?]+$", part)):
            part, suffix = part[: match.start()], r"\.[^/.]+"
        expressions.append("".join(_expression(piece) for piece in _PART.findall(part)) + suffix)
    return expressions


def _expression(piece: str) -> str:
    if piece in ("*", "**"):
        return "([^/]*)"
    if piece == "?":
        return "([^/])"
    if piece.startswith("[") and piece.endswith("]"):
        inner = piece[1:-1].replace("\\", r"\\")
        return f"([^{inner[1:]}])" if inner.startswith("!") else f"([{inner}])"
    return re.escape(piece)


def _name(match: re.Match[str]) -> str:
    """What the wildcards of a match stand for; the file's stem where there are none."""
    parts = [group.strip("/") for group in match.groups() if group]
    return "/".join(part for part in parts if part) or Path(match[0]).stem
