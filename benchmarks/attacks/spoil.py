"""Ways to break a file: each is a function of its path and a random generator."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SpoilFile = Callable[[Path, random.Random], object]

ESCAPE = "\x1b]0;owned\x07\x1b[38;5;201mpink\u202e"
"""Codes that set a terminal's title and color, and turn the direction of writing."""
LONG = "n" * 300
NUMBERS: tuple[Any, ...] = (
    -1,
    0,
    1,
    2,
    3.5,
    10**9,
    2**31,
    2**63,
    2**64,
    -(2**64),
    1e308,
    float("nan"),
    float("inf"),
    1e-320,
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    "",
    "x",
    "1",
    ESCAPE,
    LONG,
    "../x",
    [],
    {},
    [1, 1],
    [None],
    {"a": 1},
    [[]],
)


def write(data: bytes | str) -> SpoilFile:
    """The file is replaced by this."""

    def spoil(path: Path, rng: random.Random) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _gone(path)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return spoil


def truncate(part: float) -> SpoilFile:
    """The first `part` of the file."""
    return lambda path, rng: os.truncate(path, int(path.stat().st_size * part))


def append(data: bytes) -> SpoilFile:
    """More after its end."""

    def spoil(path: Path, rng: random.Random) -> None:
        with path.open("ab") as file:
            file.write(data)

    return spoil


def flip_bits(path: Path, rng: random.Random) -> None:
    """One to eight bits of the file, anywhere."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut_and_paste(path: Path, rng: random.Random) -> None:
    """A piece removed, doubled, zeroed or replaced by noise."""
    data = path.read_bytes()
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([1, 2, 4, 16, 200]))
    new = rng.choice([b"", data[start:end] * 2, bytes(end - start), rng.randbytes(end - start)])
    path.write_bytes(data[:start] + new + data[end:])


def mutate_bytes(path: Path, rng: random.Random) -> None:
    """Bits flipped, pieces moved, or the end lost."""
    rng.choice([flip_bits, cut_and_paste, truncate(rng.random())])(path, rng)


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inside in sorted(path.rglob("*"), reverse=True):
            inside.rmdir() if inside.is_dir() and not inside.is_symlink() else inside.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def missing(path: Path, rng: random.Random) -> None:
    _gone(path)


def directory(path: Path, rng: random.Random) -> None:
    _gone(path)
    path.mkdir(parents=True)


def fifo(path: Path, rng: random.Random) -> None:
    _gone(path)
    os.mkfifo(path)


def dangling(path: Path, rng: random.Random) -> None:
    _gone(path)
    path.symlink_to("nowhere")


def loop(path: Path, rng: random.Random) -> None:
    _gone(path)
    path.symlink_to(path.name)


def unreadable(path: Path, rng: random.Random) -> None:
    path.chmod(0)


def encoded(encoding: str, extra: str = "") -> SpoilFile:
    """The text in another encoding, with more after its end."""

    def spoil(path: Path, rng: random.Random) -> None:
        path.write_bytes((path.read_text() + extra).encode(encoding))

    return spoil


NOT_A_FILE: dict[str, SpoilFile] = {
    "missing": missing,
    "directory": directory,
    "fifo": fifo,
    "dangling link": dangling,
    "link to itself": loop,
    "unreadable": unreadable,
}
GARBAGE: dict[str, SpoilFile] = {
    "empty": write(b""),
    "half": truncate(0.5),
    "ten bytes": write(b"\x89PNG\r\n\x1a\n\x00\x00"),
    "text": write("no image, no record\n"),
    "zeros": write(bytes(5000)),
    "noise": lambda path, rng: path.write_bytes(rng.randbytes(3000)),
}


# ------------------------------------------------------------------------------------------------ JSON


def json_node(tree: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """(container, key) of a random value inside a tree."""
    found: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        stack += [node[key] for key in keys]
    return rng.choice(found) if found else None


def mutate_json(path: Path, rng: random.Random) -> None:
    """One value replaced, removed or renamed, a key added or doubled, or the bytes mutated."""
    how = rng.choice(["value", "value", "value", "value", "remove", "rename", "add", "double", "nest", "bytes"])
    if how == "bytes":
        mutate_bytes(path, rng)
        return
    tree = json.loads(path.read_text())
    place = json_node(tree, rng)
    if place is None or not isinstance(tree, dict):
        mutate_bytes(path, rng)
        return
    node, key = place
    if how == "value":
        node[key] = rng.choice(VALUES)
    elif how == "remove":
        del node[key]
    elif how == "rename" and isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    elif how == "nest":
        node[key] = json.loads("[" * 400 + "]" * 400)
    elif how == "add":
        tree["of_a_later_version"] = rng.choice(VALUES)
    text = json.dumps(tree)
    if how == "double":
        name = rng.choice(list(tree))
        text = f"{{{json.dumps(name)}: {json.dumps(rng.choice(VALUES))}, {text[1:]}"
    path.write_text(text)


def set_json(key: str, value: Any) -> SpoilFile:
    """One value of a JSON file, by dotted key."""

    def spoil(path: Path, rng: random.Random) -> None:
        tree = json.loads(path.read_text())
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
        path.write_text(json.dumps(tree))

    return spoil


JSON_FAULTS: dict[str, SpoilFile] = {
    **{name: GARBAGE[name] for name in ("empty", "half", "text", "zeros", "noise")},
    **{name: NOT_A_FILE[name] for name in ("directory", "fifo", "link to itself", "unreadable")},
    "list": write("[]"),
    "number": write("1"),
    "null": write("null"),
    "no keys": write("{}"),
    "deep": write('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "UTF-16": encoded("utf-16"),
    "Latin-1": write('{"a": "\u00e9"}'.encode("latin-1")),
    "digits": write('{"step": ' + "9" * 5000 + "}"),
    "NUL": write("{\x00}"),
}
"""All of them must be refused where the file is needed."""


# ---------------------------------------------------------------------------------------------- images


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, color: int = 2, data: bytes = b"\0" * 100) -> bytes:
    """A PNG with any header."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")


def saved(image: Image.Image, form: str, **options: Any) -> SpoilFile:
    """An image in a format, whatever the file is called."""

    def spoil(path: Path, rng: random.Random) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, form, **options)

    return spoil


def noise_image(height: int, width: int, channels: int = 3, seed: int = 7) -> Image.Image:
    """Noise of any size."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(pwned) (w) file closefile\nshowpage\n%%EOF\n"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
GIF_HEAD = b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0)
BAD_IMAGES: dict[str, SpoilFile] = {
    **GARBAGE,
    **{name: NOT_A_FILE[name] for name in ("fifo", "dangling link", "link to itself", "unreadable")},
    "60000 x 60000 PNG": write(png(60000, 60000)),
    "2^31 PNG": write(png(2**31 - 1, 2**31 - 1)),
    "0 x 0 PNG": write(png(0, 0)),
    "60000 x 60000 GIF": write(
        b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0) + b",\0\0\0\0`\xea`\xea\0\2\0;"
    ),
    "60000 x 60000 PPM": write(b"P6\n60000 60000\n255\n" + bytes(3000)),
    "EPS": write(EPS),
    "SVG": write(SVG),
    "PDF": write(b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF"),
    "float TIFF": saved(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF"),
}
"""Images that must be refused, by name."""
PLAIN_IMAGES: dict[str, SpoilFile] = {
    "16 bits": saved(Image.fromarray(np.random.default_rng(3).integers(660, 1553, (32, 32), dtype=np.uint16)), "PNG"),
    "one bit": saved(noise_image(32, 32, 1).convert("1"), "PNG"),
    "palette": saved(noise_image(32, 32).convert("P"), "PNG"),
    "alpha": saved(noise_image(32, 32, 4), "PNG"),
    "broken EXIF": lambda path, rng: noise_image(32, 32).save(path, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "trailing bytes": append(b"more" * 100),
    "gray": saved(noise_image(32, 32, 1), "PNG"),
}
"""Images of plausible kinds that must be accepted."""
