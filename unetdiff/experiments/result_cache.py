"""Measured results of an experiment as JSON files, so that a second call is quick and an interrupted one resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unetdiff.errors import FileError
from unetdiff.evaluation.cache import report_unused
from unetdiff.files.records import jsonable, read_object, write_json
from unetdiff.files.writing import file_errors, make_folder


def cached_result(
    file: Path,
    settings: dict[str, Any],
    measure: Callable[[], dict[str, Any]],
    is_complete: Callable[[dict[str, Any]], bool] = lambda result: True,
) -> dict[str, Any]:
    """The result stored in `file` if its settings are equal, else the result of `measure()`, which is then stored.

    Settings and results hold JSON values; non-finite numbers become None. `is_complete` rejects a stored result, e.g.
    because an image that it refers to was deleted.
    """
    stored = stored_result(file, settings)
    if stored is not None and is_complete(stored):
        return stored
    return store_result(file, settings, measure())


def stored_result(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result in a file; None if it is missing, of other settings, damaged or edited."""
    if not file.exists():
        return None
    try:
        content = read_object(file)
        result = content.get("result")
        if content.get("settings") != _plain(settings):
            return None
        if not isinstance(result, dict) or content.get("sha256") != _hash(result):
            raise FileError.of(file, "contradicts its hash")
        return result
    except FileError as error:
        report_unused(error)
        return None


def store_result(file: Path, settings: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Write a result with its settings, as JSON values, which are returned; one line if that fails."""
    result = _plain(result)
    try:
        with file_errors(file):
            make_folder(file.parent)
            write_json(file, {"settings": _plain(settings), "result": result, "sha256": _hash(result)}, indent=None)
    except FileError as error:
        report_unused(error, "It is not kept for the next time.")
    return result


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(jsonable(value)))


def _hash(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
