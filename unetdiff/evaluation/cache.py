"""A cache of tensors on disk: PATH.safetensors, and PATH.json with a fingerprint of what they were computed from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.files.tensors import write_tensors
from unetdiff.files.writing import sha256_of, write_text


def save_cache(path: Path, tensors: Mapping[str, Tensor], fingerprint: str, **facts: Any) -> None:
    """Write PATH.safetensors and PATH.json (fingerprint of the inputs, `facts`, hash of the tensors' file)."""
    tensor_file, json_file = _files(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = tensor_file.with_name(f".writing-{tensor_file.name}")
    write_tensors(dict(tensors), temporary)
    content = {"fingerprint": fingerprint, **facts, "sha256": sha256_of(temporary)}
    os.replace(temporary, tensor_file)
    write_text(json_file, json.dumps(content, indent=1) + "\n")


def load_cache(path: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """(facts, tensors), or None where they are missing, damaged, or of another fingerprint."""
    tensor_file, json_file = _files(path)
    try:
        facts = json.loads(json_file.read_text())
        if facts["fingerprint"] != fingerprint or facts["sha256"] != sha256_of(tensor_file):
            return None
        return facts, load_file(tensor_file)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError):
        return None


def is_cached(path: Path) -> bool:
    """Whether both files exist, whatever their fingerprint."""
    return all(file.is_file() for file in _files(path))


def _files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.safetensors"), path.with_name(f"{path.name}.json")
