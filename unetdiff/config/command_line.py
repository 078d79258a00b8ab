"""Dotted overrides (`--training.steps 5`) and types, through jsonargparse, with errors on one line."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jsonargparse

from unetdiff.config.schema import (
    KEYS,
    SECTIONS,
    RunConfig,
    choices_of,
    describe,
    first_key,
    flatten,
    is_known,
    is_optional,
    is_section,
    nearest_key,
)
from unetdiff.errors import UserError, config_error

Overrides = Mapping[str, Any] | Sequence[str]
"""{"training.steps": 5}, or command-line arguments: ["--training.steps", "5"]."""


def build_parser(prog: str = "unetdiff", usage: str | None = None) -> jsonargparse.ArgumentParser:
    """The jsonargparse parser of every dotted key; its help comes from the config classes' docstrings."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, usage=usage, exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(RunConfig, None)
    for action in parser._actions:  # no help for `--model CONFIG`: one file holds all sections
        if action.dest in KEYS and is_section(action.dest) and not is_optional(action.dest):
            action.help = argparse.SUPPRESS
    return parser


def to_arguments(overrides: Overrides | None) -> list[str]:
    """Overrides as command-line arguments: {"training.steps": 5} -> ["--training.steps=5"].

    A bare `--training.compile` means true.

    Raises:
        UserError: an unknown key, a whole section, or a missing value.
    """
    if isinstance(overrides, Mapping):
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in flatten(overrides).items()}
        overrides = [f"--{key}={text}" for key, text in texts.items()]
    words = list(overrides or [])
    arguments: list[str] = []
    for index, word in enumerate(words):
        if not word.startswith("--"):
            arguments.append(word)
            continue
        name, _, _ = word[2:].partition("=")
        key = name.removesuffix("+")
        if not is_known(key):
            raise UserError(f"unknown option --{name}. Did you mean --{nearest_key(key)}?")
        if key in KEYS and is_section(key) and not is_optional(key):
            raise UserError(f"--{name} is a section. Set its keys one by one, e.g. --{first_key(key)}.")
        bare = "=" not in word and (index + 1 == len(words) or words[index + 1].startswith("--"))
        if bare and KEYS.get(key) is not bool:
            raise UserError(f"--{name}: must be followed by {describe(KEYS[key]) if key in KEYS else 'a number'}.")
        arguments.append(f"{word}=true" if bare else word)
    return arguments


def build_config(tree: dict[str, Any], arguments: Sequence[str]) -> RunConfig:
    """A tree of plain values, with command-line arguments applied on top, as a typed config.

    Raises:
        UserError: a value of the wrong type.
    """
    parser = build_parser()
    try:
        namespace = parser.parse_object(tree)
        namespace = parser.parse_args(list(arguments), namespace=namespace)
        built = parser.instantiate(namespace)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise _one_line(error, arguments, tree) from None
    return RunConfig(task=built.task, **{name: getattr(built, name) for name in SECTIONS})


def type_error(key: str, value: Any) -> UserError:
    """The error for a value of the wrong type, with the nearest choice where the key has choices."""
    known = key if key in KEYS else key.rpartition(".")[0]
    near = difflib.get_close_matches(str(value), choices_of(known), n=1)
    return config_error(key, value, describe(KEYS[known]), f"Did you mean {near[0]}?" if near else "")


def _one_line(error: Exception, arguments: Sequence[str], tree: Mapping[str, Any]) -> UserError:
    """jsonargparse's message of several lines as one line: the key, the value and the accepted type."""
    text = str(error)
    key = re.search(r'Parser key "([^"]+)"', text)
    if key and is_known(key[1]):
        return type_error(key[1], _value_of(key[1], arguments, tree))
    if text.startswith("unrecognized arguments:"):
        words = text.partition(": ")[2]
        return UserError(f"unexpected argument {words!r}. Give the config file first, then --key value.")
    return UserError(" ".join(text.split()))


def _value_of(key: str, arguments: Sequence[str], tree: Mapping[str, Any]) -> Any:
    """The value of a key: the last on the command line, else the file's."""
    for index in range(len(arguments) - 1, -1, -1):
        name, equals, value = arguments[index].partition("=")
        if name.rstrip("+") == f"--{key}":
            return value if equals else arguments[index + 1]
        if name.startswith(f"--{key}."):
            return {name.removeprefix(f"--{key}."): value if equals else arguments[index + 1]}
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
