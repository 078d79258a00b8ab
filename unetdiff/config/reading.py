"""From a YAML file and overrides to a typed config, and back."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from unetdiff.config.command_line import Overrides, build_config, to_arguments, type_error
from unetdiff.config.schema import (
    KEYS,
    SECTIONS,
    RunConfig,
    Task,
    first_key,
    flatten,
    is_known,
    is_optional,
    is_section,
    nearest_key,
)
from unetdiff.config.validation.files import check_files
from unetdiff.config.validation.run import validate
from unetdiff.errors import UserError, as_yaml, config_error


def load(path: str | Path | None = None, overrides: Overrides | None = None, task: Task | None = None) -> RunConfig:
    """`parse`, then `validate` and `check_files`: a config that is ready to train. Arguments as of `parse`."""
    config = parse(path, overrides, task)
    validate(config)
    check_files(config)
    return config


def parse(path: str | Path | None = None, overrides: Overrides | None = None, task: Task | None = None) -> RunConfig:
    """A typed config from a YAML file and overrides; keys and types are checked.

    Args:
        path: the file; None: the defaults.
        overrides: applied on top of the file.
        task: what is trained; must agree with the file's task, if it has one.

    Raises:
        UserError: an unreadable file, an unknown key, or a value of the wrong type.
    """
    tree = read_yaml(Path(path)) if path is not None else {}
    if task is not None and tree.get("task", task) != task:
        raise config_error("task", tree["task"], f"{task} to train {task}", f"Train {tree['task']}, or edit {path}.")
    if path is not None:
        _check_tree(tree, str(path))
    config = build_config(tree, to_arguments(overrides))
    if task is not None:
        config.task = task
    _check_tree(asdict(config))
    return config


def override(config: RunConfig, overrides: Overrides | None) -> RunConfig:
    """A copy of a config with overrides applied; keys and types are checked as in `parse`."""
    changed = build_config(asdict(config), to_arguments(overrides))
    _check_tree(asdict(changed))
    return changed


def from_yaml(path: str | Path) -> RunConfig:
    """The config that a run saved (its config.yaml); keys and types are checked.

    Raises:
        UserError: an unreadable file, or one of another version of unetdiff.
    """
    tree = read_yaml(Path(path))
    try:
        _check_tree(tree)
        config = build_config(tree, [])
        _check_tree(asdict(config))
    except UserError as error:
        raise UserError(
            f"{path} was written by another version of unetdiff ({str(error).removesuffix('.')}). "
            "Train the run again with this version."
        ) from None
    return config


def to_yaml(config: RunConfig) -> str:
    """The whole config as YAML, every key in it; `from_yaml` reads it back."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; its keys are not checked.

    Raises:
        UserError: a missing or unreadable file, or one that is not a mapping; names the file and the line.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(str(path), [str(p) for p in path.parent.glob("*.y*ml")], n=1, cutoff=0.3)
        raise UserError(f"config file {path} does not exist." + (f" Did you mean {near[0]}?" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, Mapping):
        sections = ", ".join(["task", *SECTIONS])
        raise UserError(f"config file {path} must be a mapping with the keys {sections} (got {as_yaml(tree)}).")
    return dict(tree)


def _check_tree(tree: Mapping[str, Any], path: str = "") -> None:
    """Raise UserError for unknown keys, sections that are values, and nulls where a value is required."""
    where = f" Edit {path}." if path else ""
    for key, value in flatten(tree).items():
        if not is_known(key):
            raise UserError(
                f"unknown key {key}={as_yaml(value)}{f' in {path}' if path else ''}. Did you mean {nearest_key(key)}?"
            )
        if key in KEYS and is_section(key):
            if not isinstance(value, Mapping) and not (value is None and is_optional(key)):
                raise config_error(key, value, f"a section with keys such as {first_key(key)}", where.strip())
        elif value is None and key in KEYS and not is_optional(key):
            raise UserError(f"{type_error(key, value)}{where}")
