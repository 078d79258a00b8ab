"""Tables of colors: names and colors of the classes, inline in the config or in a file. Free of torch and numpy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unetdiff.data.name_lists import distinct_names
from unetdiff.errors import FileError, config_error
from unetdiff.files.records import read_csv, read_json, read_yaml
from unetdiff.files.texts import read_lines

Color = tuple[int, int, int]
IGNORED_NAMES = ("ignore", "ignored", "void")
"""Names of colors, in lower case, that are not a class: their pixels count in no loss and no metric."""
IGNORE_INDEX = 255
KEY = "data.mask_colors"
MAX_CLASSES = 254
REMEDY = "Give e.g. {background: [0, 0, 0], road: [128, 64, 128], void: [255, 255, 255]}."
FILE_REMEDY = "Write one class per line: 128 64 128 road."


def read_colors(
    source: Mapping[str, Sequence[int]] | str, root: Path
) -> tuple[dict[Color, int], list[str], list[Color]]:
    """The class of each color (255 = ignore), the class names, and the first color of each, of `data.mask_colors`.

    Args:
        source: {name: [r, g, b]}, or a file in `root`: lines of "r g b name" (or "name r g b", commas too), CSV with
            columns name, r, g and b, or a JSON or YAML mapping. A name that occurs twice has two colors. Names in
            `IGNORED_NAMES` are ignored pixels.

    Raises:
        UserError: a color that is not three numbers from 0 to 255 or occurs twice, or fewer than two classes.
    """
    if isinstance(source, str):
        path = root / source
        place, entries, remedy = str(path), list(_read(path)), FILE_REMEDY
    else:
        place, entries, remedy = KEY, [(KEY, name, list(color)) for name, color in source.items()], REMEDY
    names: list[str] = []
    colors: dict[Color, int] = {}
    first: list[Color] = []
    for where, name, values in entries:
        if len(values) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in values):
            raise _error(where, f"{name}: a color must be three numbers from 0 to 255 (got {values})", remedy)
        color = (values[0], values[1], values[2])
        if color in colors:
            raise _error(where, f"{name}: the color {values} occurs twice", "Give every class colors of its own.")
        if name.lower() in IGNORED_NAMES:
            colors[color] = IGNORE_INDEX
            continue
        if name not in names:
            names.append(name)
            first.append(color)
        colors[color] = names.index(name)
    if not 2 <= len(names) <= MAX_CLASSES:
        raise _error(place, f"must name the colors of 2 to {MAX_CLASSES} classes (got {len(names)})", remedy)
    return colors, distinct_names(names, [place] * len(names)), first


def _error(where: str, reason: str, remedy: str) -> Exception:
    return FileError.of(where, reason, remedy)


def _read(path: Path) -> Iterator[tuple[str, str, list[Any]]]:
    """(where, name, color) of each entry of a file."""
    if not path.is_file():
        raise config_error(KEY, path, "the existing file of a color table, or a mapping of names to colors", REMEDY)
    suffix = path.suffix.lower()
    if suffix in (".json", ".yaml", ".yml"):
        yield from _entries(path, read_json(path) if suffix == ".json" else read_yaml(path))
    elif suffix == ".csv" and re.search(r"[a-zA-Z]", read_lines(path)[0]) and not re.search(r"\d", read_lines(path)[0]):
        yield from _csv_rows(path)
    else:
        for number, line in enumerate(read_lines(path), start=1):
            if line and not line.startswith("#"):
                yield _line(line, f"{path}, line {number}")


def _entries(path: Path, content: Any) -> Iterator[tuple[str, str, list[Any]]]:
    if isinstance(content, Mapping):
        for name, color in content.items():
            yield str(path), str(name), list(color) if isinstance(color, list) else [color]
    elif isinstance(content, list):
        for entry in content:
            color = entry.get("color") if isinstance(entry, Mapping) else None
            if not isinstance(color, list) or "name" not in entry:
                raise FileError.of(path, "must be a list of objects with name and color ([r, g, b])", FILE_REMEDY)
            yield str(path), str(entry["name"]), color
    else:
        raise FileError.of(path, "must be a mapping of names to colors", FILE_REMEDY)


def _csv_rows(path: Path) -> Iterator[tuple[str, str, list[Any]]]:
    """Rows of a CSV file whose columns are the name and r, g, b (or red, green, blue)."""
    for line, cells, _ in read_csv(path):
        by_name = {(column or "").strip().lower(): (cell or "").strip() for column, cell in cells.items()}
        name = by_name.get("name") or by_name.get("class") or by_name.get("label")
        color = [
            by_name.get(short) or by_name.get(long) for short, long in zip("rgb", ("red", "green", "blue"), strict=True)
        ]
        if name is None or not all(cell and cell.isdigit() for cell in color):
            raise FileError.of(f"{path}, line {line}", "must have the columns name, r, g and b", FILE_REMEDY)
        yield f"{path}, line {line}", name, [int(cell) for cell in color if cell]


def _line(line: str, where: str) -> tuple[str, str, list[int]]:
    """ "128 64 128 road", "road 128 64 128", or either with commas or tabs."""
    words = re.split(r"[,;\s]+", line)
    numbers_first = re.fullmatch(r"(\d+)[,;\s]+(\d+)[,;\s]+(\d+)[,;\s]+(\S.*)", line)
    numbers_last = re.fullmatch(r"(.*?\S)[,;:\s]+(\d+)[,;\s]+(\d+)[,;\s]+(\d+)", line)
    if numbers_first:
        return where, numbers_first[4].strip(), [int(word) for word in words[:3]]
    if numbers_last:
        return where, numbers_last[1].strip(), [int(numbers_last[i]) for i in (2, 3, 4)]
    raise FileError.of(where, "must be three numbers and a name", FILE_REMEDY)
