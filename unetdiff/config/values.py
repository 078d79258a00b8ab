"""Plain values (of YAML or Python) as the types of the config's keys, each converted once and never guessed.

A library that parses values of the command line parses a text from a file a second time: a quoted "#1/best" became null
and a quoted "010" a number. Here a text stays a text.
"""

from __future__ import annotations

import numbers
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union

from unetdiff.errors import FileError
from unetdiff.files.records import parse_yaml

NULL = ("null", "Null", "NULL", "~")
"""Words of YAML for null."""


class WrongType(ValueError):
    """A value that is not of the type of its key."""


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a type hint that is not a union is its own only member."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def typed(hint: Any, value: Any) -> Any:
    """A plain value as the type of a hint: int, float, bool, str, Literal, list, dict, a dataclass, or a union of them.

    An integer is accepted as a float, a path as a str, a tuple as a list; a text never as a number. YAML's false and
    true are "no" and "yes" where these are choices (`mixed_precision: no`).

    Raises:
        WrongType: anything else.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if len(options := options_of(hint)) > 1:
        for option in options:
            try:
                return typed(option, value)
            except WrongType:
                continue
    elif origin is Literal:
        word = {False: "no", True: "yes"}[value] if isinstance(value, bool) else value
        if isinstance(word, str) and word in args:
            return word
    elif origin is list and isinstance(value, list | tuple):
        return [typed(args[0], item) for item in value]
    elif origin is dict and isinstance(value, Mapping):
        return {typed(args[0], name): typed(args[1], item) for name, item in value.items()}
    elif isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, hint):
            return value
        hints = typing.get_type_hints(hint)
        if isinstance(value, Mapping) and set(value) <= {item.name for item in fields(hint)}:
            return hint(**{name: typed(hints[name], item) for name, item in value.items()})
    elif isinstance(value, bool) or value is None:
        if hint is type(value):
            return value
    elif hint is int and isinstance(value, numbers.Integral):
        return int(value)
    elif hint is float and isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            raise WrongType from None
    elif hint is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise WrongType


def from_word(hint: Any, word: str) -> Any:
    """A value of the command line as the plain value of a hint: YAML, except where a text is expected.

    A text needs no quotes: `--data.train_split 2012` is "2012", except where a key takes numbers, too. Only
    `null` is null where that is allowed, and a word in quotes is what the quotes hold. One of the choices of a list is
    a list.

    Raises:
        WrongType: it is not YAML, e.g. "[1", or it is too large.
    """
    options = options_of(hint)
    if typing.get_origin(hint) is list and word in typing.get_args(typing.get_args(hint)[0]):
        return [word]
    if word in [choice for option in options for choice in typing.get_args(option)]:
        return word
    holds_mapping = any(typing.get_origin(option) is dict for option in options)
    try:
        is_number, is_mapping = int in options and word.isdecimal(), holds_mapping and word.startswith("{")
        if str in options and not is_number and not is_mapping:
            if word in NULL and type(None) in options:
                return None
            quoted = parse_yaml(word, "") if word[:1] in ("'", '"') else word
            return quoted if isinstance(quoted, str) else word
        value = parse_yaml(word, "")
        if value is None and word not in NULL:  # nothing, or a comment
            raise WrongType
        return value
    except FileError:
        if str in options:
            return word
        raise WrongType from None
