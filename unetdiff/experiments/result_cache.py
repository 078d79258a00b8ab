"""What an experiment measured of one run, kept on disk, so that a second call is quick and a killed one goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unetdiff.files import write_whole
from unetdiff.training.logger import jsonable


def kept(
    file: Path,
    settings: dict[str, Any],
    measure: Callable[[], dict[str, Any]],
    whole: Callable[[dict[str, Any]], bool] = lambda result: True,
) -> dict[str, Any]:
    """The result in a file where it was measured with the same settings, else measured now and written.

    Both are plain values, as JSON has them; figures that are not numbers come back as None. `whole` says whether a
    result is still to be used: the images that it names may be gone.
    """
    wanted = json.loads(json.dumps(jsonable(settings)))
    if file.is_file():
        try:
            found = json.loads(file.read_text())
        except json.JSONDecodeError:
            found = {}
        if isinstance(found, dict) and found.get("settings") == wanted and whole(found["result"]):
            return found["result"]
    file.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(jsonable(measure())))
    write_whole(file, json.dumps({"settings": wanted, "result": result}, allow_nan=False) + "\n")
    return result
