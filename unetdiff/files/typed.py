"""Values of JSON and YAML files as typed Python: one line names file and key of the first that is wrong."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from unetdiff.errors import FileError, as_yaml
from unetdiff.files.records import type_name

Type = TypeVar("Type")

MAX_SHOWN = 60
"""Characters of a value in a message."""


def typed(hint: type[Type], value: Any, path: str | Path, key: str = "", remedy: str = "") -> Type:
    """A value of a file, checked against a type hint; dataclasses are constructed.

    Args:
        hint: a dataclass or TypedDict (nested ones too), or int, float, str, bool, None, Any, Literal, unions, lists,
            tuples and dicts of these; `Annotated[int, 0]`: at least 0. Unknown keys are refused for a dataclass, and
            kept for a TypedDict. A union of dataclasses is told apart by its field `kind`.
        value: as `json.loads` or YAML returns it.
        path: the file, for the message.
        key: where the value stands in it; "" at the top.
        remedy: for the message.

    Raises:
        FileError: a missing or unknown key, or a value of another type; non-finite numbers are no floats.
    """
    return _Reader(path, remedy).read(hint, value, key)


class _Reader:
    def __init__(self, path: str | Path, remedy: str) -> None:
        self.path, self.remedy = path, remedy

    def fail(self, key: str, reason: str) -> FileError:
        return FileError.of(self.path, f"{key}: {reason}" if key else reason, self.remedy)

    def wrong(self, key: str, words: str, value: Any) -> FileError:
        text = as_yaml(value) if isinstance(value, int | float | str | bool) else type_name(value)
        text = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
        return self.fail(key, f"must be {words} (got {text})")

    def read(self, hint: Any, value: Any, key: str) -> Any:
        if hint is Any:
            return value
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Required, NotRequired):
            return self.read(arguments[0], value, key)
        if origin is Annotated:
            number = self.read(arguments[0], value, key)
            if number is not None and number < arguments[1]:
                raise self.wrong(key, f"at least {arguments[1]}", value)
            return number
        if origin is Literal:
            if not isinstance(value, str | int) or value not in arguments:
                raise self.wrong(key, f"one of {', '.join(map(str, arguments))}", value)
            return value
        if origin in (Union, types.UnionType):
            return self.read_union(arguments, value, key)
        if origin is list:
            return [self.read(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(self.items(value, key))]
        if origin is tuple:
            return self.read_tuple(arguments, value, key)
        if origin is dict:
            if not isinstance(value, Mapping):
                raise self.wrong(key, "an object", value)
            return {name: self.read(arguments[1], item, _join(key, str(name))) for name, item in value.items()}
        if is_typeddict(hint) or is_dataclass(hint):
            return self.read_object(hint, value, key)
        return self.read_scalar(hint, value, key)

    def items(self, value: Any, key: str) -> list[Any] | tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self.wrong(key, "a list", value)
        return value

    def read_tuple(self, arguments: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
        items = self.items(value, key)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(items)
        if len(items) != len(arguments):
            raise self.wrong(key, f"a list of {len(arguments)} values", value)
        return tuple(
            self.read(h, item, f"{key}[{i}]") for i, (h, item) in enumerate(zip(arguments, items, strict=True))
        )

    def read_union(self, arguments: tuple[Any, ...], value: Any, key: str) -> Any:
        if value is None and type(None) in arguments:
            return None
        choices = [hint for hint in arguments if hint is not type(None)]
        if len(choices) == 1:
            return self.read(choices[0], value, key)
        if all(is_dataclass(hint) for hint in choices):
            kinds = {get_type_hints(hint)["kind"].__args__[0]: hint for hint in choices}
            kind = value.get("kind") if isinstance(value, Mapping) else None
            if not isinstance(kind, str) or kind not in kinds:
                raise self.wrong(_join(key, "kind"), f"one of {', '.join(kinds)}", kind)
            return self.read(kinds[kind], value, key)
        for hint in choices:
            try:
                return self.read(hint, value, key)
            except FileError:
                continue
        raise self.wrong(key, " or ".join(_words(hint) for hint in choices), value)

    def read_object(self, hint: Any, value: Any, key: str) -> Any:
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object", value)
        hints = _hints(hint)
        if is_typeddict(hint):
            # not __required_keys__, which does not see annotations that are texts
            required = {name for name, inner in hints.items() if _is_required(inner, hint.__total__)}
            content = dict(value)
        else:
            required = {f.name for f in fields(hint) if f.default is MISSING and f.default_factory is MISSING}
            content = {}
            unknown = [str(name) for name in value if name not in hints]
            if unknown:
                raise self.fail(_join(key, unknown[0]), "unknown key of another version")
        for name, inner in hints.items():
            if name in value:
                content[name] = self.read(inner, value[name], _join(key, name))
            elif name in required:
                raise self.fail(_join(key, name), "is missing")
        return content if is_typeddict(hint) else hint(**content)

    def read_scalar(self, hint: Any, value: Any, key: str) -> Any:
        if hint is float:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or abs(value) > 1e300 or not math.isfinite(value):
                raise self.wrong(key, "a finite number", value)
            return value
        fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        if not fits or (hint is int and abs(value) >= 1 << 64):
            raise self.wrong(key, _words(hint), value)
        return value


@cache
def _hints(hint: Any) -> dict[str, Any]:
    return get_type_hints(hint, include_extras=True)


def _is_required(hint: Any, total: bool) -> bool:
    return get_origin(hint) is Required or (total and get_origin(hint) is not NotRequired)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _words(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _words(get_args(hint)[0])
    if get_origin(hint) is list:
        return "a list"
    names = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}
    return names.get(hint, "an object")
