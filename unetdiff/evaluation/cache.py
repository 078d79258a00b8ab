"""A cache of tensors on disk: PATH.safetensors, and PATH.json with a fingerprint of what they were computed from.

A cache that is missing, damaged, unreadable or of other inputs is computed again, and one that cannot be written is not
kept; either is one line on stderr. A cache never stops the work.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from unetdiff.errors import FileError
from unetdiff.files.records import read_object, write_json
from unetdiff.files.tensors import read_tensors, write_tensors
from unetdiff.files.writing import file_errors, make_folder, sha256_of, write_file


def save_cache(path: Path, tensors: Mapping[str, Tensor], fingerprint: str, **facts: Any) -> None:
    """Write PATH.safetensors and PATH.json (fingerprint of the inputs, `facts`, hash of the tensors' file)."""
    tensor_file, json_file = _files(path)
    try:
        with file_errors(tensor_file):
            make_folder(path.parent)
            write_file(tensor_file, lambda aside: write_tensors(tensors, aside))
            write_json(json_file, {"fingerprint": fingerprint, **facts, "sha256": sha256_of(tensor_file)})
    except FileError as error:
        report_unused(error, "It is not kept for the next time.")


def load_cache(path: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """(facts, tensors), or None where they are missing, damaged, or of another fingerprint."""
    if not is_cached(path):
        return None
    tensor_file, json_file = _files(path)
    try:
        facts = read_object(json_file)
        if facts.get("fingerprint") != fingerprint:
            return None
        if facts.get("sha256") != sha256_of(tensor_file):
            raise FileError.of(tensor_file, f"contradicts {json_file.name}")
        return facts, read_tensors(tensor_file)
    except FileError as error:
        report_unused(error)
        return None


def is_cached(path: Path) -> bool:
    """Whether both files exist, whatever their fingerprint."""
    with suppress(OSError):  # no permission
        return all(file.is_file() for file in _files(path))
    return False


def report_unused(error: FileError, consequence: str = "It is computed again.") -> None:
    """One line on stderr about a cache that cannot be used."""
    tqdm.write(f"unetdiff: cache {error.path}: {error.reason}. {consequence}", file=sys.stderr)


def _files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.safetensors"), path.with_name(f"{path.name}.json")
