"""Tensors kept on disk beside what they are of: two files that belong together, or count as none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.files import sha256_of, write_whole
from unetdiff.models.loading import save_tensors


def keep(path: Path, tensors: Mapping[str, Tensor], fingerprint: str, **facts: Any) -> None:
    """Write PATH.safetensors and PATH.json: the fingerprint of what they are of, facts, and the tensors' own hash."""
    file, about = _files(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".writing-{file.name}")
    save_tensors(dict(tensors), aside)
    told = {"fingerprint": fingerprint, **facts, "sha256": sha256_of(aside)}
    os.replace(aside, file)
    write_whole(about, json.dumps(told, indent=1) + "\n")


def kept(path: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Facts and tensors, or None where they are of something else, or damaged: a damaged cache is no cache."""
    file, about = _files(path)
    try:
        facts = json.loads(about.read_text())
        if facts["fingerprint"] != fingerprint or facts["sha256"] != sha256_of(file):
            return None
        return facts, load_file(file)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError):
        return None


def is_kept(path: Path) -> bool:
    """Both files are there, whatever they are of."""
    return all(file.is_file() for file in _files(path))


def _files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.safetensors"), path.with_name(f"{path.name}.json")
