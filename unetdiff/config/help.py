"""The help of every dotted option of `unetdiff train`, from the attribute docstrings of the config classes."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

from unetdiff.config.schema import KEYS, LEAVES, RunConfig, describe, section_class
from unetdiff.errors import as_yaml

INDENT = 24
WIDTH = 100


@dataclass(frozen=True)
class Option:
    """One key of the config, as the help and the reference show it."""

    key: str
    text: str
    """The string below the attribute, on one line."""
    type: str
    """What the key holds, in words."""
    default: str | None
    """As YAML; None: the key of a section that is null by default."""


def options() -> Iterator[Option]:
    """Every key that holds a value, section by section."""
    texts = docstrings()
    defaults = _defaults(RunConfig())
    for key in LEAVES:
        default = as_yaml(defaults[key]) if key in defaults else None
        yield Option(key, texts[key], describe(KEYS[key]), default)


def options_help() -> str:
    """`--key TYPE: docstring (default: ...)` of every key, section by section."""
    lines = []
    for option in options():
        default = "" if option.default is None else f" (default: {option.default})"
        text = f"{option.text} [{option.type}]{default}"
        lines.append(f"  --{option.key}")
        lines += textwrap.wrap(text, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
    return "\n".join(lines)


def docstrings(cls: type = RunConfig, prefix: str = "") -> dict[str, str]:
    """Dotted key, of sections too -> the string below its attribute, on one line."""
    texts: dict[str, str] = {}
    for base in cls.__bases__:
        if is_dataclass(base):
            texts |= docstrings(base, prefix)
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    for node, below in zip(body, body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            key = prefix + node.target.id
            texts[key] = inspect.cleandoc(ast.literal_eval(below.value)).replace("\n", " ")
            if (inner := section_class(KEYS[key])) is not None:
                texts |= docstrings(inner, f"{key}.")
    return texts


def _defaults(section: object, prefix: str = "") -> dict[str, object]:
    """Dotted key -> default; without the keys of sections that are null by default."""
    values: dict[str, object] = {}
    for item in fields(section):  # type: ignore[arg-type]
        key, value = prefix + item.name, getattr(section, item.name)
        if section_class(KEYS[key]) is None:
            values[key] = value
        elif value is not None:
            values |= _defaults(value, f"{key}.")
    return values
