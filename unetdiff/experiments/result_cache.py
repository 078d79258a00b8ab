"""Measured results of an experiment as JSON files, so that a second call is quick and an interrupted one resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unetdiff.files.records import jsonable
from unetdiff.files.writing import write_text


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
    settings = json.loads(json.dumps(jsonable(settings)))
    if file.is_file():
        try:
            stored = json.loads(file.read_text())
        except json.JSONDecodeError:
            stored = {}
        if isinstance(stored, dict) and stored.get("settings") == settings and is_complete(stored["result"]):
            return stored["result"]
    file.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(jsonable(measure())))
    write_text(file, json.dumps({"settings": settings, "result": result}, allow_nan=False) + "\n")
    return result
