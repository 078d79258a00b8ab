"""From a YAML file and overrides to a typed config, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unetdiff.config.bounds import check_bounds
from unetdiff.config.command_line import Overrides, apply, assign, given_keys
from unetdiff.config.precedence import leave_out_contradictions, leave_out_followers, replace_alternatives
from unetdiff.config.pretrained import follow_pretrained
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
    mean_key,
)
from unetdiff.config.validation.files import check_files
from unetdiff.config.validation.run import validate
from unetdiff.errors import FileError, UserError, as_yaml, config_error, nearest
from unetdiff.files import records
from unetdiff.files.folders import files_in


def load(
    path: str | Path | None = None,
    overrides: Overrides | None = None,
    task: Task | None = None,
    notes: list[str] | None = None,
    is_default: bool = False,
) -> RunConfig:
    """`parse`, then `validate` and `check_files`: a config that is ready to train.

    Options of the file that contradict the overrides are left out (`precedence`).

    Args:
        path: as of `parse`.
        overrides: as of `parse`.
        task: as of `parse`.
        is_default: as of `parse`.
        notes: gets a line for each option that is left out.
    """
    config, flags = parse(path, overrides, task, is_default), given_keys(overrides)
    if path is None or not flags:
        validate(config)
    else:
        keys = [key for key in flatten(read_yaml(Path(path))) if key not in flags]
        notes = [] if notes is None else notes
        leave_out_followers(config, keys, flags, notes)
        config = leave_out_contradictions(config, keys, validate, lambda: parse(path, None, task, is_default), notes)
    check_files(config)
    return config


def parse(
    path: str | Path | None = None,
    overrides: Overrides | None = None,
    task: Task | None = None,
    is_default: bool = False,
) -> RunConfig:
    """A typed config from a YAML file and overrides; keys, types and ranges are checked, and the keys that follow from
    `model.pretrained` are filled in.

    Args:
        path: the file; None: the defaults.
        overrides: applied on top of the file; an override replaces the alternative in the file (steps the epochs).
        task: what is trained; must agree with the file's task, if it has one.
        is_default: the file has defaults, not choices: a pretrained model may contradict them.

    Raises:
        UserError: an unreadable file, an unknown key, a value of the wrong type or out of range, or one that
            contradicts the pretrained model.
    """
    tree = read_yaml(Path(path)) if path is not None else {}
    config = build(tree, f"Edit {path}.", f" in {path}")
    if task is not None and "task" in tree and config.task != task:
        raise config_error("task", config.task, f"{task} to train {task}", f"Train {config.task}, or edit {path}.")
    config, flags = apply(config, overrides), given_keys(overrides)
    replaced = replace_alternatives(config, flags)
    if task is not None:
        config.task = task
    chosen = [] if is_default else [key for key in flatten(tree) if key not in replaced]
    return follow_pretrained(config, {*chosen, *flags})


def override(config: RunConfig, overrides: Overrides | None) -> RunConfig:
    """A copy of a config with overrides applied; keys, types and ranges are checked as in `parse`."""
    return apply(config, overrides)


def from_yaml(path: str | Path) -> RunConfig:
    """The config that a run saved (its config.yaml); keys, types and ranges are checked.

    Raises:
        UserError: an unreadable file, or one of another version of unetdiff.
    """
    tree = read_yaml(Path(path))
    try:
        config = build(tree)
        check_bounds(flatten(asdict(config)))
    except UserError as error:
        raise UserError(
            f"{path} was written by another version of unetdiff ({str(error).removesuffix('.')}). "
            "Train the run again with this version."
        ) from None
    return config


def to_yaml(config: RunConfig) -> str:
    """The whole config as YAML, every key in it; `from_yaml` reads it back."""
    return records.dump_yaml(asdict(config))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; its keys are not checked.

    Raises:
        UserError: a missing or unreadable file, a key that occurs twice, or content that is not a mapping; names the
            file and the line.
    """
    if not path.exists():
        raise FileError.of(f"config file {path}", "does not exist", _similar_file(path))
    tree = records.read_yaml(path, "Give a YAML file.")
    tree = {} if tree is None else tree
    if not isinstance(tree, Mapping):
        sections = ", ".join(["task", *SECTIONS])
        raise FileError.of(path, f"must be a mapping with the keys {sections} (got {as_yaml(tree)})")
    return dict(tree)


def build(tree: Mapping[str, Any], remedy: str = "", where: str = "") -> RunConfig:
    """A tree of plain values as a typed config; its ranges are not checked.

    Args:
        tree: sections with their keys.
        remedy: in messages, e.g. "Edit scenes.yaml."
        where: of the unknown key in the message, e.g. " in scenes.yaml".

    Raises:
        UserError: unknown keys, sections that are values, values of the wrong type, a key that is given both in its
            section and by its dotted name.
    """
    config = RunConfig()
    for key, value in flatten(tree).items():
        if not is_known(key):
            raise UserError(f"unknown key {key}={as_yaml(value)}{where}. {mean_key(key)}")
        if key in KEYS and is_section(key) and not (is_optional(key) and value is None):
            if not isinstance(value, Mapping):
                raise config_error(key, value, f"a section with keys such as {first_key(key)}", remedy)
            if not value and not is_optional(key):
                continue  # an empty section
        assign(config, key, value, remedy=remedy)
    return config


def _similar_file(path: Path) -> str:
    try:
        others = {other.stem: str(other) for other in files_in(path.parent, {".yaml", ".yml"})}
    except FileError:
        return ""
    near = nearest(path.stem, others)
    return "" if near is None else f"Did you mean {others[near]}?"
