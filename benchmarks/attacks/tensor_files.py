"""Ways to break a safetensors file: its header, its body, and what only looks like one."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attacks.case import PWNED
from attacks.spoil import GARBAGE, NOT_A_FILE, SpoilFile

Header = dict[str, Any]


def parts(path: Path) -> tuple[Header, bytes]:
    """The header and the body of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Header | bytes, body: bytes, length: int | None = None) -> bytes:
    """A safetensors file; `length` of the header as it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def header(change: Callable[[Header, list[str]], Any]) -> SpoilFile:
    """The header changed in place by a function of it and its tensors' names, largest first; the body stays."""

    def spoil(path: Path, rng: random.Random) -> None:
        head, body = parts(path)
        names = [name for name in head if name != "__metadata__"]
        names.sort(key=lambda name: (-math.prod(head[name]["shape"]), name))
        change(head, names)
        path.write_bytes(join(head, body))

    return spoil


def body(change: Callable[[bytes], bytes]) -> SpoilFile:
    """The body changed; the header stays."""

    def spoil(path: Path, rng: random.Random) -> None:
        head, data = parts(path)
        path.write_bytes(join(head, change(data)))

    return spoil


def whole(change: Callable[[Header, dict[str, bytes]], None]) -> SpoilFile:
    """Tensors changed, by name: {"dtype", "shape"} in the header, their bytes in the second argument."""

    def spoil(path: Path, rng: random.Random) -> None:
        head, data = parts(path)
        head.pop("__metadata__", None)
        pieces = {name: data[slice(*entry.pop("data_offsets"))] for name, entry in head.items()}
        change(head, pieces)
        at = 0
        for name, entry in head.items():
            entry["data_offsets"] = [at, at + len(pieces[name])]
            at += len(pieces[name])
        path.write_bytes(join(head, b"".join(pieces[name] for name in head)))

    return spoil


def _largest(head: Header) -> str:
    return max(sorted(head), key=lambda name: math.prod(head[name]["shape"]))


def _drop(head: Header, pieces: dict[str, bytes]) -> None:
    del head[_largest(head)]


def _drop_all(head: Header, pieces: dict[str, bytes]) -> None:
    head.clear()


def _rename(head: Header, pieces: dict[str, bytes]) -> None:
    name = _largest(head)
    head["other"], pieces["other"] = head.pop(name), pieces[name]


def _add(head: Header, pieces: dict[str, bytes]) -> None:
    head["other"], pieces["other"] = {"dtype": "F32", "shape": [2]}, bytes(8)


def _shorten(head: Header, pieces: dict[str, bytes]) -> None:
    for name, entry in head.items():
        if entry["shape"] and entry["shape"][0] > 1:
            size = len(pieces[name]) // entry["shape"][0]
            entry["shape"][0] = 1
            pieces[name] = pieces[name][:size]


def _transpose(head: Header, pieces: dict[str, bytes]) -> None:
    for entry in head.values():
        entry["shape"] = entry["shape"][::-1] if len(set(entry["shape"])) > 1 else [*entry["shape"], 1]


def _as(dtype: str, numpy: Any) -> Callable[[Header, dict[str, bytes]], None]:
    def change(head: Header, pieces: dict[str, bytes]) -> None:
        for name, entry in head.items():
            if entry["dtype"] == "F32":
                values = np.frombuffer(pieces[name], np.float32)
                entry["dtype"], pieces[name] = dtype, values.astype(numpy).tobytes()

    return change


def _values(value: float) -> Callable[[Header, dict[str, bytes]], None]:
    def change(head: Header, pieces: dict[str, bytes]) -> None:
        name = _largest(head)
        pieces[name] = np.full(len(pieces[name]) // 4, value, np.float32).tobytes()

    return change


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (PWNED,)


PICKLE = pickle.dumps(_Bomb())
"""Makes a directory where it is loaded."""


def pickled(path: Path, rng: random.Random) -> None:
    """A pickle in the place and with the name of the file."""
    path.write_bytes(PICKLE)


def only_pickle(path: Path, rng: random.Random) -> None:
    """A pickle with the names that torch and transformers use, and no safetensors."""
    path.unlink()
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "model.pth"):
        (path.parent / name).write_bytes(PICKLE)


def huge(path: Path, rng: random.Random) -> None:
    """A terabyte of nothing, which takes no space."""
    path.write_bytes(b"")
    os.truncate(path, 1 << 40)


BAD_TENSORS: dict[str, SpoilFile] = {
    **GARBAGE,
    **{name: NOT_A_FILE[name] for name in ("missing", "directory", "fifo", "dangling link", "unreadable")},
    "no body": body(lambda data: b""),
    "half a body": body(lambda data: data[: len(data) // 2]),
    "more body": body(lambda data: data + bytes(64)),
    "header of 2^63 bytes": lambda path, rng: path.write_bytes(join(*parts(path), length=2**63)),
    "header of 90 MB": lambda path, rng: path.write_bytes(join(*parts(path), length=90_000_000)),
    "header of 0 bytes": lambda path, rng: path.write_bytes(join(*parts(path), length=0)),
    "header is a list": lambda path, rng: path.write_bytes(join(b"[1]", parts(path)[1])),
    "header is deep": lambda path, rng: path.write_bytes(join(b"[" * 100_000 + b"]" * 100_000, parts(path)[1])),
    "offsets beyond the end": header(lambda head, names: head[names[0]].update(data_offsets=[0, 2**40])),
    "offsets negative": header(lambda head, names: head[names[0]].update(data_offsets=[-8, 0])),
    "offsets overlap": header(lambda head, names: head[names[1]].update(data_offsets=head[names[0]]["data_offsets"])),
    "shape of 10^18": header(lambda head, names: head[names[0]].update(shape=[10**9, 10**9])),
    "shape negative": header(lambda head, names: head[names[0]].update(shape=[-1, -1])),
    "shape of texts": header(lambda head, names: head[names[0]].update(shape=["a"])),
    "dtype unknown": header(lambda head, names: head[names[0]].update(dtype="Q7")),
    "dtype I32": header(lambda head, names: head[names[0]].update(dtype="I32")),
    "a tensor less": whole(_drop),
    "no tensors": whole(_drop_all),
    "a tensor renamed": whole(_rename),
    "a tensor more": whole(_add),
    "tensors cut to [:1]": whole(_shorten),
    "shapes turned": whole(_transpose),
    "int8": whole(_as("I8", np.int8)),
    "uint8": whole(_as("U8", np.uint8)),
    "bool": whole(_as("BOOL", np.bool_)),
    "complex": whole(_as("C64", np.complex64)),
    "a pickle": pickled,
    "a terabyte": huge,
}
"""Files of tensors that must be refused."""
ODD_TENSORS: dict[str, SpoilFile] = {
    "float64": whole(_as("F64", np.float64)),
    "float16": whole(_as("F16", np.float16)),
    "NaN": whole(_values(math.nan)),
    "infinite": whole(_values(math.inf)),
    "1e30": whole(_values(1e30)),
}
