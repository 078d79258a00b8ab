"""JSON, JSON lines, CSV and YAML: read strictly, written without NaN."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from unetdiff.errors import FileError
from unetdiff.files.texts import MAX_BYTES, read_text
from unetdiff.files.writing import write_text

MAX_DEPTH = 50
MAX_NODES = 100_000
MAX_DIGITS = 400
MAX_YAML_BYTES = 1 << 18
"""Bounds of a YAML file: nesting, values after aliases are expanded, characters of a number, its size."""
MAX_INTEGER = 300
"""Digits of an integer in JSON, so that it fits a float."""


# ------------------------------------------------------------------------------------------------ JSON


def read_json(path: str | Path, remedy: str = "", max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        FileError: missing, not UTF-8, not JSON (with the line), a key that occurs twice, or nested too deeply.
    """
    return parse_json(read_text(path, max_bytes, remedy), path, remedy)


def read_object(path: str | Path, remedy: str = "") -> dict[str, Any]:
    """The content of a JSON file that must be an object. Errors as of `read_json`."""
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise FileError.of(path, f"must be a JSON object (got {type_name(content)})", remedy)
    return content


def read_json_lines(path: str | Path, torn: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON lines file. Arguments and errors as of `numbered_json_lines`."""
    return [entry for _, entry in numbered_json_lines(path, torn)]


def numbered_json_lines(path: str | Path, torn: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """Where each object of a JSON lines file stands ("run/metrics.jsonl, line 3"), and the object; blank lines are
    skipped.

    Args:
        path: the file.
        torn: ignore an incomplete last line, of a process that was killed while it appended.

    Raises:
        FileError: as of `read_json`, with the line.
    """
    texts = read_text(path).split("\n")
    if torn and texts[-1]:
        texts.pop()  # a complete line ends with a line break
    lines = []
    for number, text in enumerate(texts, start=1):
        if text.strip():
            where = f"{path}, line {number}"
            entry = parse_json(text, where, "Remove the line.")
            if not isinstance(entry, dict):
                raise FileError.of(where, f"must be a JSON object (got {type_name(entry)})", "Remove the line.")
            lines.append((where, entry))
    return lines


def parse_json(text: str, path: str | Path, remedy: str = "") -> Any:
    """JSON text; `path` is where it stands, for the message. Errors as of `read_json`."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise FileError.of(path, "must be JSON (nested too deeply)", remedy) from None
    except ValueError as error:  # JSONDecodeError, or an integer that is too long
        raise FileError.of(path, f"must be JSON ({'empty' if not text.strip() else error})", remedy) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return content


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file atomically; non-finite numbers become null.

    Raises:
        OSError: e.g. a full disk; the old file stays.
    """
    write_text(Path(path), json.dumps(jsonable(content), indent=indent, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Nested lists and dicts for strict JSON: non-finite numbers become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, dict):
        return {name: jsonable(v) for name, v in value.items()}
    return value


def type_name(value: Any) -> str:
    """A JSON or YAML value's type in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# ------------------------------------------------------------------------------------------------ CSV


def read_csv(path: str | Path, remedy: str = "") -> Iterator[tuple[int, dict[str, str | None], int]]:
    """The rows of a CSV file whose first row names its columns: (line, cells by column, number of cells).

    Cells that are missing at the end of a row are None; cells beyond the columns are counted only.

    Raises:
        FileError: missing, not UTF-8, not CSV, or a column that is named twice.
    """
    reader = csv.reader(io.StringIO(read_text(path, remedy=remedy), newline=""), strict=True)
    try:
        columns = next(reader, [])
        repeated = sorted({name for name in columns if columns.count(name) > 1})
        if repeated:
            raise FileError.of(path, f"column {repeated[0]!r} is named twice", "Rename one of them.")
        for row in reader:
            if row:
                cells: list[str | None] = [*row[: len(columns)], *[None] * (len(columns) - len(row))]
                yield reader.line_num, dict(zip(columns, cells, strict=True)), len(row)
    except csv.Error as error:
        raise FileError.of(f"{path}, line {reader.line_num}", f"must be CSV ({error})", remedy) from None


# ------------------------------------------------------------------------------------------------ YAML


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without its traps: keys that occur twice, endless aliases, 010 = 8 and 1:30 = 90."""

    nodes = 0
    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, ScalarNode) else repr(key_node)
            line = key_node.start_mark.line + 1
            if key in seen and key != "<<":
                raise yaml.MarkedYAMLError(problem=f"key '{key}' in line {line} is already in line {seen[key]}")
            seen[key] = line
        return super().construct_mapping(node, deep)

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None:
            self._bound(node, 0, ())
        return node

    def _bound(self, node: Node, depth: int, above: tuple[int, ...]) -> None:
        self.nodes += 1
        if depth > MAX_DEPTH or id(node) in above:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=node.start_mark)
        if self.nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES:,} values", problem_mark=node.start_mark)
        children: list[Node] = []
        if isinstance(node, MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, SequenceNode):
            children = node.value
        elif node.tag != "tag:yaml.org,2002:str" and len(node.value) > MAX_DIGITS:
            raise yaml.MarkedYAMLError(problem="a number is too long", problem_mark=node.start_mark)
        for child in children:
            self._bound(child, depth + 1, (*above, id(node)))


_INTEGER, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INTEGER, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBERS = {
    _INTEGER: r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)",
    _FLOAT: r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
for _tag, _pattern in _NUMBERS.items():
    _StrictLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes where YAML 1.1 or `parse_yaml` would read anything else, e.g. '1e3' and '010'."""


for _tag, _pattern in _NUMBERS.items():
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))


def dump_yaml(content: Any) -> str:
    """Plain values as YAML, keys in their order; `parse_yaml` reads them back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path, remedy: str = "") -> Any:
    """The content of a YAML file. Errors as of `parse_yaml`, and for a file that is missing or not UTF-8."""
    return parse_yaml(read_text(path, MAX_YAML_BYTES, remedy), path)


def parse_yaml(text: str, path: str | Path) -> Any:
    """YAML text; `path` is where it stands, for the message.

    Numbers are those of YAML 1.2: 010 and 1:30 are texts, 1e-3 is a number.

    Raises:
        FileError: not YAML, a key that occurs twice, values nested too deeply or too many (through aliases).
    """
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise FileError.of(path, "must be YAML (nested too deeply)") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise FileError.of(path, f"must be YAML ({reason})") from None
