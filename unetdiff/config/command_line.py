"""Dotted overrides (`--training.steps 5`) and trees of plain values, as a typed config; errors on one line."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from datetime import date
from typing import Any

from unetdiff.config.bounds import check_bounds, expanded
from unetdiff.config.schema import (
    KEYS,
    RunConfig,
    choices_of,
    describe,
    first_key,
    flatten,
    is_known,
    is_optional,
    is_section,
    mean_key,
    section_class,
)
from unetdiff.config.values import WrongType, from_word, options_of, typed
from unetdiff.errors import UserError, config_error, did_you_mean

Overrides = Mapping[str, Any] | Sequence[str]
"""{"training.steps": 5}, or command-line arguments: ["--training.steps", "5"]."""


def apply(config: RunConfig, overrides: Overrides | None) -> RunConfig:
    """A copy of a config with overrides applied; its keys, types and ranges are checked.

    On the command line a bare `--training.compile` means true, `--key+ value` adds to a list, and an entry of a mapping
    is an option, too: `--segmentation.losses.focal 1`.

    Raises:
        UserError: an unknown key, a whole section, a missing value, a value of the wrong type or out of range.
    """
    config = deepcopy(config)
    if isinstance(overrides, Mapping):
        for key, value in flatten(overrides).items():
            _require_option(key, f"--{key}")
            assign(config, key, value)
    else:
        for name, word in _pairs(list(overrides or [])):
            key = name.removesuffix("+")
            _assign_word(config, key, word, adds=name != key)
    check_bounds(flatten(asdict(config)))
    return config


def given_keys(overrides: Overrides | None) -> list[str]:
    """The dotted keys that overrides set."""
    if isinstance(overrides, Mapping):
        return list(flatten(overrides))
    return [name.removesuffix("+") for name, _ in _pairs(list(overrides or []))]


def assign(config: RunConfig, key: str, value: Any, shown: Any = None, remedy: str = "") -> None:
    """Set one dotted key of a config to a plain value.

    Args:
        config: changed in place.
        key: a known key.
        value: a plain value.
        shown: the value in messages, where it is written otherwise.
        remedy: in messages.

    Raises:
        UserError: a value of the wrong type.
    """
    *sections, name = key.split(".")
    owner: Any = config
    for depth, section in enumerate(sections, 1):
        inner = getattr(owner, section)
        if inner is None:  # an optional section, e.g. segmentation.ohem
            inner = section_class(KEYS[".".join(sections[:depth])])()  # type: ignore[misc]
            setattr(owner, section, inner)
        owner = inner
    try:
        if isinstance(owner, dict):
            keys, values = entry_types(key)
            owner[typed(keys, from_word(keys, name))] = typed(values, value)
        else:
            setattr(owner, name, expanded(key, typed(KEYS[key], value)))
    except WrongType:
        raise type_error(key, value if shown is None else shown, remedy) from None


def type_error(key: str, value: Any, remedy: str = "") -> UserError:
    """The error for a value of the wrong type, with the nearest choice where the key has choices."""
    if key not in KEYS:  # an entry of a mapping
        return config_error(key, value, describe(entry_types(key)[1]), remedy)
    hints = [did_you_mean(str(value), choices_of(key)), remedy]
    if str in options_of(KEYS[key]) and isinstance(value, int | float | date):
        hints.insert(1, f"Put it in quotes: '{value}'.")
    return config_error(key, value, describe(KEYS[key]), " ".join(filter(None, hints)))


def entry_types(key: str) -> tuple[Any, Any]:
    """The types of the names and values of the mapping that a dotted key is an entry of."""
    options = options_of(KEYS[key.rpartition(".")[0]])
    names, values = next(typing.get_args(option) for option in options if typing.get_origin(option) is dict)
    return names, values


def _assign_word(config: RunConfig, key: str, word: str, adds: bool) -> None:
    """Set a key to a word of the command line; `adds`: append it to the key's list instead."""
    hint = KEYS[key] if key in KEYS else entry_types(key)[1]
    try:
        value = from_word(hint, word)
    except WrongType:
        raise type_error(key, word) from None
    if adds:
        current: Any = config
        for part in key.split("."):
            current = getattr(current, part)
        if not isinstance(current, list):
            raise config_error(f"--{key}+", word, "--KEY without a plus: the key does not hold a list")
        value = [*current, *(value if isinstance(value, list) else [value])]
    assign(config, key, value, None if adds else word)


def _pairs(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    """("training.steps", "5") of each option.

    Raises:
        UserError: an unknown key, a whole section, a missing value, or an argument that is not an option.
    """
    index = 0
    while index < len(words):
        word = words[index]
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}. Give the config file first, then --key value.")
        name, equals, value = word[2:].partition("=")
        key = name.removesuffix("+")
        _require_option(key, f"--{name}")
        index += 1
        if not equals:
            bare = index == len(words) or words[index].startswith("--")
            if bare and KEYS.get(key) is not bool:
                raise UserError(
                    f"--{name}: must be followed by {describe(KEYS[key] if key in KEYS else entry_types(key)[1])}."
                )
            value = "true" if bare else words[index]
            index += not bare
        yield name, value


def _require_option(key: str, name: str) -> None:
    if not is_known(key):
        raise UserError(f"unknown option {name}. {mean_key(key, '--')}")
    if key in KEYS and is_section(key) and not is_optional(key):
        raise UserError(f"{name} is a section. Set its keys one by one, e.g. --{first_key(key)}.")
