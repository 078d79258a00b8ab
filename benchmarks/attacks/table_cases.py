"""Broken captions (metadata.jsonl, .csv, .parquet) and tables of images in parquet."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from attacks import spoil
from attacks.case import SECRET, Case
from attacks.data_cases import at, trained
from attacks.material import png_bytes, row, write_parquet
from attacks.spoil import ESCAPE, GARBAGE, LONG, NOT_A_FILE, SpoilFile

TEXT = ("captions", "text_encoder", "text.yaml")
CHECK_TEXT = ("data", "check", "text.yaml")
STATS_TEXT = ("data", "stats", "text.yaml")
TRAIN_TEXT = ("train", "diffusion", "text.yaml", "--output_dir", "out")
METADATA = "captions/train/metadata.jsonl"
TABLE = ("table.parquet", "table.yaml")
CHECK_TABLE = ("data", "check", "table.yaml")
TRAIN_TABLE = ("train", "diffusion", "table.yaml", "--output_dir", "out")
STATS_TABLE = ("data", "stats", "table.yaml", "--data.caption_column", "text")


def line(**columns: Any) -> SpoilFile:
    """One more line in metadata.jsonl."""
    return spoil.append((json.dumps(columns) + "\n").encode())


def secret(path: Path) -> None:
    """An image outside of the data, of one color."""
    Image.new("RGB", (32, 32), SECRET).save(path)


BAD_METADATA: dict[str, SpoilFile] = {
    **{name: NOT_A_FILE[name] for name in ("missing", "directory", "fifo", "link to itself", "unreadable")},
    **{name: GARBAGE[name] for name in ("empty", "half", "text", "noise", "zeros")},
    "UTF-16": spoil.encoded("utf-16"),
    "Latin-1": spoil.encoded("latin-1", '{"file_name": "0.png", "text": "\u00e9"}\n'),
    "list": spoil.append(b"[1, 2]\n"),
    "null": spoil.append(b"null\n"),
    "deep": spoil.append(b"[" * 100_000 + b"]" * 100_000 + b"\n"),
    "digits": spoil.append(b'{"file_name": ' + b"9" * 6000 + b"}\n"),
    "no file_name": line(text="a"),
    "file_name null": line(file_name=None, text="a"),
    "file_name number": line(file_name=3, text="a"),
    "file_name empty": line(file_name="", text="a"),
    "file_name list": line(file_name=["0.png"], text="a"),
    "file_name NUL": line(file_name="0\0.png", text="a"),
    "file_name 300 letters": line(file_name=LONG, text="a"),
    "file_name escape codes": line(file_name=ESCAPE, text="a"),
    "file_name folder": line(file_name=".", text="a"),
    "file_name twice": line(file_name="0.png", text="a"),
    "file_name twice by ./": line(file_name="./0.png", text="a"),
    "above the folder": line(file_name="../../secret.png", text="a"),
    "absolute": line(file_name="/etc/hostname", text="a"),
    "not found": line(file_name="unknown.png", text="a"),
    "no text": line(file_name="3.png"),
    "text null": line(file_name="3.png", text=None),
    "text number": line(file_name="3.png", text=3),
    "text blank": line(file_name="3.png", text=" \n"),
    "text list": line(file_name="3.png", text=["a"]),
}


def caption_cases() -> Iterator[Case]:
    """Metadata files."""
    for name, spoiler in BAD_METADATA.items():

        def both(scratch: Path, rng: random.Random, how: SpoilFile = spoiler) -> None:
            secret(scratch / "secret.png")
            how(scratch / METADATA, rng)

        named = "metadata" if name not in ("missing",) else ""
        wanted: Any = "either" if name == "half" else "refused"  # it may end at the end of a line
        yield Case("captions", f"{name}, check", CHECK_TEXT, TEXT, both, wanted, named)
        yield Case("captions", f"{name}, train", TRAIN_TEXT, TEXT, both, wanted, named)
        yield Case("captions", f"{name}, stats", STATS_TEXT, TEXT, both, "either")
    good: dict[str, SpoilFile] = {
        "BOM": spoil.encoded("utf-8-sig"),
        "blank lines": spoil.append(b"\n\n  \n"),
        "more columns": lambda path, rng: path.write_text(path.read_text().replace("{", '{"x": [1, {"y": null}], ')),
        "long text": lambda path, rng: path.write_text(path.read_text().replace("a red", "a red" * 20_000)),
        "unicode": lambda path, rng: path.write_text(path.read_text().replace("a red", "\U0001f408 caf\u00e9")),
    }
    for name, spoiler in good.items():
        yield Case("captions", f"{name}, check", CHECK_TEXT, TEXT, at(METADATA, spoiler), "accepted")
        yield Case("captions", f"{name}, train", TRAIN_TEXT, TEXT, at(METADATA, spoiler), "accepted", check=trained)
    for name, text in {
        "escape codes": ESCAPE,
        "markup": "<b>&",
        "dollars": "$x$ $\\frac{",
        "one word": "x" * 9000,
    }.items():
        change: SpoilFile = lambda path, rng, text=text: path.write_text(  # noqa: E731
            "".join(json.dumps(json.loads(row) | {"text": text}) + "\n" for row in path.read_text().splitlines())
        )
        yield Case("captions", f"text {name}, train", TRAIN_TEXT, TEXT, at(METADATA, change), "either", check=trained)
        yield Case("captions", f"text {name}, stats", STATS_TEXT, TEXT, at(METADATA, change), "either")
    yield from _csv_cases()

    def two(scratch: Path, rng: random.Random) -> None:
        (scratch / "captions/train/metadata.csv").write_text("file_name,text\n0.png,a\n")

    yield Case("captions", "jsonl and csv", CHECK_TEXT, TEXT, two, "refused", "metadata.csv")

    def link(scratch: Path, rng: random.Random) -> None:
        secret(scratch / "secret.png")
        (scratch / "captions/train/3.png").unlink()
        os.symlink("../../secret.png", scratch / "captions/train/3.png")

    yield Case("captions", "link out of the folder, check", CHECK_TEXT, TEXT, link, "either")


def _csv_cases() -> Iterator[Case]:
    tables: dict[str, tuple[bytes, Any]] = {
        "plain": (b"file_name,text\n0.png,a\n1.png,b\n2.png,c\n3.png,d\n", "accepted"),
        "BOM": (b"\xef\xbb\xbffile_name,text\n0.png,a\n1.png,b\n", "accepted"),
        "CR": (b"file_name,text\r0.png,a\r1.png,b\r", "either"),
        "semicolons": (b"file_name;text\n0.png;a\n", "refused"),
        "open quote": (b'file_name,text\n0.png,"a\n1.png,b\n', "either"),
        "many cells": (b"file_name,text\n0.png,a,b,c\n", "refused"),
        "few cells": (b"file_name,text\n0.png\n", "refused"),
        "no head": (b"0.png,a\n1.png,b\n", "refused"),
        "empty": (b"", "refused"),
        "NUL": (b"file_name,text\n0.png,a\0b\n", "either"),
        "UTF-16": ("file_name,text\n0.png,a\n".encode("utf-16"), "refused"),
        "huge cell": (b"file_name,text\n0.png," + b"x" * 200_000 + b"\n", "either"),
        "same column twice": (b"file_name,text,text\n0.png,a,b\n", "either"),
    }
    for name, (data, expect) in tables.items():

        def replace(scratch: Path, rng: random.Random, data: bytes = data) -> None:
            (scratch / METADATA).unlink()
            (scratch / "captions/train/metadata.csv").write_bytes(data)

        yield Case("captions", f"csv {name}, check", CHECK_TEXT, TEXT, replace, expect)
        yield Case("captions", f"csv {name}, stats", STATS_TEXT, TEXT, replace, "either")
    for name, spoiler in {"noise": GARBAGE["noise"], "empty": GARBAGE["empty"], "fifo": spoil.fifo}.items():

        def tabled(scratch: Path, rng: random.Random, how: SpoilFile = spoiler) -> None:
            (scratch / METADATA).unlink()
            how(scratch / "captions/train/metadata.parquet", rng)

        yield Case("captions", f"parquet {name}, check", CHECK_TEXT, TEXT, tabled, "refused")


def caption_mutations(number: int) -> Case:
    """Bytes of a metadata file mutated."""
    argv = (CHECK_TEXT, STATS_TEXT, TRAIN_TEXT)[number % 3]
    return Case("captions", f"bytes {number}", argv, TEXT, at(METADATA, spoil.mutate_bytes))


# --------------------------------------------------------------------------------------------- parquet


def rows(change: Callable[[int, dict[str, Any]], dict[str, Any] | None], count: int = 12) -> SpoilFile:
    """The table with each row changed; None drops it."""

    def spoiler(path: Path, rng: random.Random) -> None:
        changed = [change(i, row(i)) for i in range(count)]
        write_parquet(path, [row for row in changed if row is not None])

    return spoiler


def column(name: str, value: Any, only: int | None = None) -> SpoilFile:
    """A column's value in all rows, or in one."""
    return rows(lambda i, plain: plain | {name: value} if only in (None, i) else plain)


def image(data: bytes | None, path: str | None = None, only: int | None = 3) -> SpoilFile:
    """A cell of the image column."""
    return column("image", {"bytes": data, "path": path}, only)


def class_labels(path: Path, rng: random.Random) -> None:
    """Labels that are not in the names of their feature."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_list(
        [{"image": {"bytes": png_bytes(i + 300), "path": None}, "label": -1 if i == 4 else i % 2} for i in range(12)],
        features=features,
    )
    table.to_parquet(str(path))


def _exif_bomb() -> bytes:
    file = io.BytesIO()
    spoil.noise_image(8, 8).save(file, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    return file.getvalue()


BAD_TABLES: dict[str, SpoilFile] = {
    **{name: NOT_A_FILE[name] for name in ("missing", "fifo", "link to itself", "unreadable", "dangling link")},
    **{name: GARBAGE[name] for name in ("empty", "half", "text", "noise", "zeros")},
    "no rows": rows(lambda i, plain: None if i else plain, 1),
    "no image column": rows(lambda i, plain: {"label": plain["label"]}),
    "no label column": rows(lambda i, plain: {"image": plain["image"]}),
    "label null": column("label", None, 2),
    "labels null": column("label", None),
    "label float": column("label", 0.5),
    "label NaN": column("label", float("nan"), 1),
    "label list": column("label", [1]),
    "label struct": column("label", {"a": 1}),
    "label image": rows(lambda i, plain: plain | {"label": plain["image"]}),
    "label outside of its names": class_labels,
    "image null": column("image", None, 3),
    "image empty": image(b""),
    "image text": image(b"no image"),
    "image bomb": image(spoil.png(60000, 60000)),
    "image EPS": image(spoil.EPS),
    "image nowhere": image(None, None),
    "image absolute": image(None, "/etc/hostname"),
    "image next to the table": image(None, "secret.png"),
    "image above": image(None, "../secret.png"),
    "image FIFO": image(None, "pipe.png"),
    "image number": column("image", 3),
    "image string": column("image", "secret.png"),
    "image list": column("image", [1, 2]),
}


NEXT_TO = ("image next to the table", "image string")
"""Paths of images in the table's own folder, which it may name."""


def parquet_cases() -> Iterator[Case]:
    """Tables."""
    for name, spoiler in BAD_TABLES.items():

        def both(scratch: Path, rng: random.Random, how: SpoilFile = spoiler) -> None:
            secret(scratch / "secret.png")
            os.mkfifo(scratch / "pipe.png")
            how(scratch / "table.parquet", rng)

        wanted: Any = "either" if name in NEXT_TO else "refused"
        yield Case("parquet", f"{name}, check", CHECK_TABLE, TABLE, both, wanted)
        yield Case("parquet", f"{name}, train", TRAIN_TABLE, TABLE, both, wanted)
        yield Case("parquet", f"{name}, stats", STATS_TABLE, TABLE, both, "either")
    named: dict[str, SpoilFile] = {
        "labels of words": rows(lambda i, plain: plain | {"label": ["cat", "dog"][i % 2]}),
        "labels true and false": rows(lambda i, plain: plain | {"label": bool(i % 2)}),
        "broken EXIF": image(_exif_bomb()),
        "another column": column("more", {"a": [None]}),
    }
    for name, spoiler in named.items():
        yield Case(
            "parquet", f"{name}, train", TRAIN_TABLE, TABLE, at("table.parquet", spoiler), "accepted", check=trained
        )
    for name, value in {"escape codes": ESCAPE, "dollars": "$x_", "empty": "", "long": LONG, "NUL": "a\0b"}.items():
        spoiler = rows(lambda i, plain, value=value: plain | {"label": value if i % 2 else "dog"})
        yield Case("parquet", f"label {name}, train", TRAIN_TABLE, TABLE, at("table.parquet", spoiler), check=trained)
        spoiler = column("text", value, 5)
        yield Case("parquet", f"caption {name}, stats", STATS_TABLE, TABLE, at("table.parquet", spoiler))
    for option, value in {"image_column": "label", "label_column": "image", "caption_column": "label"}.items():
        argv = (*CHECK_TABLE, f"--data.{option}", value)
        yield Case("parquet", f"{option} {value}, check", argv, TABLE, expect="refused")
        argv = (*TRAIN_TABLE, f"--data.{option}", value)
        yield Case("parquet", f"{option} {value}, train", argv, TABLE, expect="refused")


def parquet_mutations(number: int) -> Case:
    """Bytes of a table mutated."""
    argv = (CHECK_TABLE, TRAIN_TABLE, STATS_TABLE)[number % 3]
    return Case("parquet", f"bytes {number}", argv, TABLE, at("table.parquet", spoil.mutate_bytes))
