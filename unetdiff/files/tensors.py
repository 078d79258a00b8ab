"""Safetensors files: the header is checked against what is expected before memory is taken for the tensors."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unetdiff.errors import FileError
from unetdiff.files.folders import regular_file

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 100_000_000
MAX_TORCH_BYTES = 1 << 30
"""Largest file of `torch.save` that is read, 1 GiB: they hold feature networks only."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""dtypes of weights, as safetensors names them."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of pickled weights, which are never read."""


NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's name of a dtype -> that of safetensors."""


def dtype_name(dtype: object) -> str:
    """The name in a header of a torch dtype: F32, BF16, I64 ..."""
    return NAMES[str(dtype).removeprefix("torch.")]


class Entry(NamedTuple):
    """One tensor of a header."""

    dtype: str
    """As safetensors names it: F32, BF16, I64 ..."""
    shape: tuple[int, ...]


def read_header(path: str | Path, remedy: str = "") -> dict[str, Entry]:
    """dtype and shape of every tensor of a safetensors file, by name, without reading them.

    Raises:
        FileError: missing, not a safetensors file, truncated, or of a dtype that torch cannot hold.
    """
    path = regular_file(path, remedy)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise FileError.of(path, f"must be a complete safetensors file (got {size:,} bytes)", remedy)
            header = json.loads(file.read(length))
        entries, last = {}, 0
        for name, entry in header.items():
            if name != "__metadata__":
                shape = tuple(int(length) for length in entry["shape"])
                begin, end = entry["data_offsets"]
                if end - begin != math.prod(shape) * BYTES[entry["dtype"]] or min(shape, default=0) < 0:
                    raise FileError.of(path, f"'{name}' must have the size of its shape {shape}", remedy)
                entries[name], last = Entry(entry["dtype"], shape), max(last, end)
    except OSError as error:
        raise FileError.from_os_error(path, error, remedy) from None
    except FileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"must be a safetensors file of real numbers (header: {type(error).__name__} {error})"
        raise FileError.of(path, reason, remedy) from None
    if 8 + length + last != size:
        raise FileError.of(
            path, f"must be a complete safetensors file (got {size:,} of {8 + length + last:,} bytes)", remedy
        )
    return entries


def read_tensors(path: str | Path, remedy: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name. Errors as of `read_header`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path, remedy)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError.of(path, f"must be a complete safetensors file ({error})", remedy) from None


def open_tensors(path: str | Path, remedy: str = "") -> Any:
    """A safetensors file whose tensors and slices are read one by one (`safetensors.safe_open`).

    Errors as of `read_header`.
    """
    from safetensors import SafetensorError, safe_open

    read_header(path, remedy)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError.of(path, f"must be a complete safetensors file ({error})", remedy) from None


def read_torch_tensors(path: str | Path, max_bytes: int = MAX_TORCH_BYTES, remedy: str = "") -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, of which nothing but tensors is unpickled (prefer safetensors).

    Raises:
        FileError: missing, larger than `max_bytes`, truncated, or not a dict of tensors only.
    """
    import pickle

    import torch

    path = regular_file(path, remedy)
    if path.stat().st_size > max_bytes:
        raise FileError.of(path, f"must be at most {max_bytes:,} bytes (got {path.stat().st_size:,})", remedy)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError, AttributeError) as error:
        reason = f"must be a file of tensors only (truncated, or a pickle of other objects: {type(error).__name__})"
        raise FileError.of(path, reason, remedy) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise FileError.of(path, "must be a file of tensors by name", remedy)
    return content


def write_torch_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a file of `torch.save`, for libraries that read no safetensors.

    Raises:
        OSError: e.g. a full disk.
    """
    import torch

    torch.save(dict(tensors), path)


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file (not atomically: into a directory that is written aside).

    Raises:
        OSError: e.g. a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # safetensors wants plain contiguous memory; the memory format is put back by copying into place
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata)
    except SafetensorError as error:  # its word for a failed write, e.g. a full disk
        raise os_error_of(error, path) from error


def os_error_of(error: Exception, path: str | Path) -> OSError:
    """The OSError behind a SafetensorError ("I/O error: No space left on device (os error 28)")."""
    number = re.search(r"os error (\d+)", str(error))
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code) if number else str(error), str(path))


def conversion(pickle: Path) -> str:
    """How to convert a pickled state dict to safetensors."""
    return (
        "Pickles are never loaded; convert it: "
        f"state = torch.load('{pickle.name}', map_location='cpu', weights_only=True); "
        f"safetensors.torch.save_file(state, '{pickle.with_suffix('.safetensors').name}')"
    )
